package slowpath

import "sync/atomic"

// counter names one of the counters of the slow path.
type counter int

// What came up, by reason.
const (
	upMiss counter = iota
	upHold
	upCopy
	upTooBig
	upTTL
	upSegment
	upTranslate
	// What went down.
	reinjected
	reinjectedBytes
	fragmentsSent
	segmentsSent
	resized
	translatedSent
	icmpTooBig
	icmpTimeExceeded
	icmpTranslate
	missesReported
	replayed
	// Frames that were no good.
	badShort
	badNoMetadata
	badReason
	badPacket
	badOffload
	// Packets that were dropped.
	dropMissPackets
	dropMissBytes
	dropMissTable
	dropMissTime
	dropMissRefused
	dropRejected
	dropHoldBytes
	dropHoldTime
	dropHoldDiscarded
	dropHoldLost
	dropReplayLeftOut
	dropTooBig
	dropTTL
	dropNoTranslator
	dropTranslate
	dropTranslateLoop
	dropWrite
	dropStopped
	// ICMP errors that were not sent.
	icmpIneligible
	icmpLimited
	icmpNoSource
	icmpUntranslated
	// Others.
	copiesEvicted
	replayMissing
	doorErrors
	readErrors
	counters
)

var counterNames = [counters]string{
	upMiss:            "up_miss",
	upHold:            "up_hold",
	upCopy:            "up_copy",
	upTooBig:          "up_too_big",
	upTTL:             "up_ttl",
	upSegment:         "up_segment",
	upTranslate:       "up_translate",
	reinjected:        "reinjected",
	reinjectedBytes:   "reinjected_bytes",
	fragmentsSent:     "fragments_sent",
	segmentsSent:      "segments_sent",
	resized:           "resized",
	translatedSent:    "translated_sent",
	icmpTooBig:        "icmp_too_big",
	icmpTimeExceeded:  "icmp_time_exceeded",
	icmpTranslate:     "icmp_translate",
	missesReported:    "misses_reported",
	replayed:          "replayed",
	badShort:          "bad_short",
	badNoMetadata:     "bad_no_metadata",
	badReason:         "bad_reason",
	badPacket:         "bad_packet",
	badOffload:        "bad_offload",
	dropMissPackets:   "drop_miss_packets",
	dropMissBytes:     "drop_miss_bytes",
	dropMissTable:     "drop_miss_table",
	dropMissTime:      "drop_miss_time",
	dropMissRefused:   "drop_miss_refused",
	dropRejected:      "drop_rejected",
	dropHoldBytes:     "drop_hold_bytes",
	dropHoldTime:      "drop_hold_time",
	dropHoldDiscarded: "drop_hold_discarded",
	dropHoldLost:      "drop_hold_lost",
	dropReplayLeftOut: "drop_replay_left_out",
	dropTooBig:        "drop_too_big",
	dropTTL:           "drop_ttl",
	dropNoTranslator:  "drop_no_translator",
	dropTranslate:     "drop_translate",
	dropTranslateLoop: "drop_translate_loop",
	dropWrite:         "drop_write",
	dropStopped:       "drop_stopped",
	icmpIneligible:    "icmp_ineligible",
	icmpLimited:       "icmp_limited",
	icmpNoSource:      "icmp_no_source",
	icmpUntranslated:  "icmp_untranslated",
	copiesEvicted:     "copies_evicted",
	replayMissing:     "replay_missing",
	doorErrors:        "door_errors",
	readErrors:        "read_errors",
}

// counts are the counters of one slow path. Any goroutine may read them while they change.
type counts [counters]atomic.Uint64

func (c *counts) add(i counter, n uint64) { c[i].Add(n) }
func (c *counts) inc(i counter)           { c[i].Add(1) }

// snapshot returns the counters by name.
func (c *counts) snapshot() map[string]uint64 {
	m := make(map[string]uint64, counters)
	for i := range c {
		m[counterNames[i]] = c[i].Load()
	}
	return m
}
