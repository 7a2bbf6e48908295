// Package stream is numbered, time-stamped packets: who sends them at a pace, and who counts what is lost, doubled or
// overtaken. The test's own hosts and the program inside a real guest use the same.
package stream
