package testnet

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// A trail is where something was seen, in the order in which it was: each place once for every time that it was come to.
// The zero value has seen nothing.
type trail struct {
	places []netip.Addr
	first  []time.Time // when it was seen in places[i] first
	last   []time.Time // and last, before it was seen elsewhere
	count  []uint64
}

// see adds a sighting. Sightings come in order of time.
func (t *trail) see(place netip.Addr, at time.Time) {
	n := len(t.places)
	if n == 0 || t.places[n-1] != place {
		t.places, t.first = append(t.places, place), append(t.first, at)
		t.last, t.count = append(t.last, at), append(t.count, 0)
		n++
	}
	t.last[n-1] = at
	t.count[n-1]++
}

// overlap is for how long two places were in use at once: from when a place was first seen until the place before it
// was last seen. 0 = each place was left for good before the next one was come to. grace pardons what was on its way on
// another CPU: overlaps of at most grace are 0.
func (t *trail) overlap(grace time.Duration) (longest time.Duration) {
	visited := t.visited()
	for i := range len(visited) - 1 {
		came := t.first[slices.Index(t.places, visited[i+1])]
		for j, p := range t.places {
			if d := t.last[j].Sub(came); p == visited[i] && d > grace {
				longest = max(longest, d)
			}
		}
	}
	return longest
}

// visited are the different places, in the order in which they were first seen.
func (t *trail) visited() (out []netip.Addr) {
	for _, p := range t.places {
		if !slices.Contains(out, p) {
			out = append(out, p)
		}
	}
	return out
}

func (t *trail) String() string {
	var s []string
	for i, p := range t.places {
		s = append(s, fmt.Sprintf("%s (%d)", p, t.count[i]))
	}
	return strings.Join(s, " -> ")
}

// lispData is what is seen of a LISP data packet on the wire.
type lispData struct {
	from, to           netip.Addr // RLOCs
	innerFrom, innerTo netip.Addr // EIDs, and whoever they talk to
}

const lispDataPort = 4341

// parseLISPData reads an Ethernet frame; ok is false for what is no LISP data packet without IP options.
func parseLISPData(b []byte) (d lispData, ok bool) {
	if len(b) < 14 {
		return d, false
	}
	kind := binary.BigEndian.Uint16(b[12:])
	if kind != unix.ETH_P_IP && kind != unix.ETH_P_IPV6 {
		return d, false
	}
	from, to, proto, rest := parseIP(b[14:], kind == unix.ETH_P_IPV6)
	if proto != unix.IPPROTO_UDP || len(rest) < 16 || binary.BigEndian.Uint16(rest[2:]) != lispDataPort {
		return d, false
	}
	inner := rest[16:] // UDP and LISP headers: 8 bytes each
	if len(inner) == 0 {
		return d, false
	}
	innerFrom, innerTo, _, _ := parseIP(inner, inner[0]>>4 == 6)
	return lispData{from, to, innerFrom, innerTo}, innerFrom.IsValid()
}

// parseIP reads an IP header without options or extensions; from is not valid if there is none.
func parseIP(b []byte, v6 bool) (from, to netip.Addr, proto byte, rest []byte) {
	switch {
	case v6 && len(b) >= 40 && b[0]>>4 == 6:
		return netip.AddrFrom16([16]byte(b[8:24])), netip.AddrFrom16([16]byte(b[24:40])), b[6], b[40:]
	case !v6 && len(b) >= 20 && b[0] == 0x45:
		return netip.AddrFrom4([4]byte(b[12:16])), netip.AddrFrom4([4]byte(b[16:20])), b[9], b[20:]
	}
	return netip.Addr{}, netip.Addr{}, 0, nil
}

// wireTrails is what the wire tells of EIDs: from which RLOC the packets of each come, and to which RLOC each sender
// sends the packets for it.
type wireTrails struct {
	speaks map[netip.Addr]*trail // EID -> the RLOCs that its packets come from
	sent   map[sentTo]*trail     // sender and EID -> the RLOCs that packets for it are sent to
	which  map[netip.Addr]bool   // EIDs that are looked at
	gates  map[netip.Addr]string // whose sending is looked at: the D-ETRs, by each of their RLOCs
}

type sentTo struct {
	sender string
	eid    netip.Addr
}

// packet takes one packet, seen at the moment at.
func (w *wireTrails) packet(d lispData, at time.Time) {
	gate := w.gates[d.from]
	if gate == "" && w.which[d.innerFrom] { // what a D-ETR passes on says nothing of where it came from
		see(w.speaks, d.innerFrom, d.from, at)
	}
	if gate != "" && w.which[d.innerTo] {
		see(w.sent, sentTo{gate, d.innerTo}, d.to, at)
	}
}

func see[K comparable](m map[K]*trail, k K, place netip.Addr, at time.Time) {
	t := m[k]
	if t == nil {
		t = new(trail)
		m[k] = t
	}
	t.see(place, at)
}

// inFlight pardons a packet that was on its way through another CPU of a D-ETR when the mapping changed there: the two
// leave in the other order.
const inFlight = 20 * time.Millisecond

// judge says what should not have been seen of an EID that moved from one RLOC to another.
func (w *wireTrails) judge(eid, from, to netip.Addr) (problems []string) {
	want := []netip.Addr{from, to}
	if t := w.speaks[eid]; t == nil || !slices.Equal(t.visited(), want) || t.overlap(0) > 0 {
		problems = append(problems, fmt.Sprintf("packets of %s came from %v, not from %s and then from %s only", eid, t, from, to))
	}
	senders := 0
	for k, t := range w.sent {
		if k.eid != eid {
			continue
		}
		senders++
		if len(t.visited()) > 2 || t.visited()[len(t.visited())-1] != to || t.overlap(inFlight) > 0 {
			problems = append(problems, fmt.Sprintf("%s sent packets for %s to %v, not to %s and then to %s only", k.sender, eid, t, from, to))
		}
	}
	if senders == 0 {
		problems = append(problems, fmt.Sprintf("nobody was seen to send a packet for %s", eid))
	}
	slices.Sort(problems)
	return problems
}

// tableTrails is what the tables of Map-Servers and D-ETRs tell of EIDs.
type tableTrails struct {
	trails   map[tableEID]*trail
	versions map[tableEID]uint16
	problems map[string]int // what should not have been seen, and how often
	looks    int
}

type tableEID struct{ table, eid string }

func newTableTrails() *tableTrails {
	return &tableTrails{trails: map[tableEID]*trail{}, versions: map[tableEID]uint16{}, problems: map[string]int{}}
}

// look takes one reading of a table. hypervisors are the RLOCs that a VM can be at.
func (t *tableTrails) look(table string, rows map[string]mappingRow, eids []string, hypervisors []netip.Addr, at time.Time) {
	t.looks++
	for _, eid := range eids {
		row, ok := rows[eid]
		if !ok {
			t.problems[fmt.Sprintf("%s: %s is nowhere", table, eid)]++
			continue
		}
		var places []netip.Addr
		for _, h := range hypervisors {
			if row.at(h) {
				places = append(places, h)
			}
		}
		if len(places) != 1 {
			t.problems[fmt.Sprintf("%s: %s is at %v", table, eid, places)]++
			continue
		}
		k := tableEID{table, eid}
		see(t.trails, k, places[0], at)
		if v := t.versions[k]; row.Version < v { // a run is short: the numbers do not wrap
			t.problems[fmt.Sprintf("%s: %s went from version %d back to %d", table, eid, v, row.Version)]++
		}
		t.versions[k] = max(t.versions[k], row.Version)
	}
}

// judge says what should not have been seen of an EID that moved from one RLOC to another.
func (t *tableTrails) judge(eid string, from, to netip.Addr) (problems []string) {
	for k, tr := range t.trails {
		// Whoever is read seldom may have been read first when the EID had moved.
		if k.eid == eid && !slices.Equal(tr.places, []netip.Addr{from, to}) && !slices.Equal(tr.places, []netip.Addr{to}) {
			problems = append(problems, fmt.Sprintf("%s had %s at %v, not at %s and then at %s only", k.table, eid, tr, from, to))
		}
	}
	slices.Sort(problems)
	return problems
}

// seen lists what look found wrong, most frequent first.
func (t *tableTrails) seen() (out []string) {
	for what := range t.problems {
		out = append(out, what)
	}
	slices.SortFunc(out, func(a, b string) int { return cmp.Or(cmp.Compare(t.problems[b], t.problems[a]), cmp.Compare(a, b)) })
	for i, what := range out {
		if n := t.problems[what]; n > 1 {
			out[i] = fmt.Sprintf("%s (%d times)", what, n)
		}
	}
	return out
}
