//go:build race

package testnet

// buildFlags: when the tests run with the race detector, so do the daemons that they start.
var buildFlags = []string{"-race"}

// raceSlackMS is what the race detector in every daemon may add to a target, on a machine
// that has other things to do.
const raceSlackMS = 250
