package fib

// PortCount is what the data plane counted at one VM interface.
type PortCount struct {
	// Given counts the packets that were given to the interface at its egress hook, as the interface
	// will count them in tx_packets or tx_dropped. It does not start again while the interface lives.
	Given uint64
}
