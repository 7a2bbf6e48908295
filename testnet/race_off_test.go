//go:build !race

package testnet

var buildFlags []string

const raceSlackMS = 0
