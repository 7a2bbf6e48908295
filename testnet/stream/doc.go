// Package stream is numbered, time-stamped packets and seeded content: who sends them at a pace, and who counts what is
// lost, doubled, overtaken or changed. The test's own hosts and the program inside a real guest use the same.
//
//	stamp.go echo.go     what is in a packet
//	counter.go           what arrived, and when nothing did
//	pace.go              when packets are due
//	transfer.go          content over TCP, and its hash
//	control.go           how the program in a guest is told what to do
//
// It needs the standard library only: its source travels into the guest's program.
package stream
