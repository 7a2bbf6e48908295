package gateway

import "sync/atomic"

// counter names one of the counters of the gateway.
type counter int

const (
	// What was heard.
	heardARP counter = iota
	heardRARP
	heardNS
	heardNA
	heardRS
	heardRA
	heardEcho
	// What was answered.
	sentARP
	sentNA
	sentRA
	sentEcho
	announced
	sighted
	// What was not.
	quietProbe
	quietOwn
	quietOffLink
	quietLimited
	gatewayClaimed
	// What was no good.
	badShort
	badEther
	badARP
	badND
	badChecksum
	badHopLimit
	badSource
	badMAC
	// Trouble.
	sightingsLost
	sendErrors
	readErrors
	setupErrors
	resubscribed
	counters
)

var counterNames = [counters]string{
	heardARP:       "heard_arp",
	heardRARP:      "heard_rarp",
	heardNS:        "heard_neighbor_solicitation",
	heardNA:        "heard_neighbor_advertisement",
	heardRS:        "heard_router_solicitation",
	heardRA:        "heard_router_advertisement",
	heardEcho:      "heard_echo",
	sentARP:        "sent_arp",
	sentNA:         "sent_neighbor_advertisement",
	sentRA:         "sent_router_advertisement",
	sentEcho:       "sent_echo",
	announced:      "announced",
	sighted:        "sighted",
	quietProbe:     "quiet_probe",
	quietOwn:       "quiet_own_address",
	quietOffLink:   "quiet_off_link",
	quietLimited:   "quiet_limited",
	gatewayClaimed: "gateway_claimed",
	badShort:       "bad_short",
	badEther:       "bad_ethertype",
	badARP:         "bad_arp",
	badND:          "bad_neighbor_discovery",
	badChecksum:    "bad_checksum",
	badHopLimit:    "bad_hop_limit",
	badSource:      "bad_source",
	badMAC:         "bad_mac",
	sightingsLost:  "sightings_lost",
	sendErrors:     "send_errors",
	readErrors:     "read_errors",
	setupErrors:    "setup_errors",
	resubscribed:   "resubscribed",
}

// counts are the counters of one gateway. Any goroutine may read and change them.
type counts [counters]atomic.Uint64

func (c *counts) inc(i counter) { c[i].Add(1) }

// snapshot returns the counters by name.
func (c *counts) snapshot() map[string]uint64 {
	m := make(map[string]uint64, counters)
	for i := range c {
		m[counterNames[i]] = c[i].Load()
	}
	return m
}
