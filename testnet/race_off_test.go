//go:build !race

package testnet

var buildFlags []string
