// Package crowd is a broadcast and those who watch it: a small HTTP server whose picture changes every second, and a
// crowd of viewers, each with one connection that stays open and on which the page is asked for once and the picture
// again and again. What a viewer gets is checked to the byte, and how long each of them waited is written down.
//
//	site.go picture.go   the server
//	viewer.go            one viewer: his connection, what he asks, what he gets
//	crowd.go             all of them: when they come, when they go
//	record.go            who waited for how long, what failed
//
// It needs the standard library only, knows no cloud, and opens no socket: whoever uses it says where connections begin.
package crowd
