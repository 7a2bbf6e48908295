// Package plot draws figures that change over time, once for a terminal and once as an SVG file that reads well on light
// and on dark pages. It needs the standard library only and knows nothing of what it draws.
//
//	chart.go   what is drawn: panels of series over one time axis, and events
//	axis.go    round numbers for axes
//	svg.go     as a file
//	text.go    in a terminal
package plot
