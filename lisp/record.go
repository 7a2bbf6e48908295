package lisp

import (
	"encoding/binary"
	"fmt"
	"slices"
)

// Bits of the record's and the locator's words (RFC 9301 section 5.4).
const (
	recordActionShift = 13
	recordBitA        = 0x1000

	locatorBitL = 0x0004
	locatorBitP = 0x0002
	locatorBitR = 0x0001
)

// maxCount is the largest number of records in a message and of locators in a record: 8 bits travel.
const maxCount = 255

// record reads a record of a Map-Reply, Map-Register or Map-Notify; clearP as in [appendRecords]. ok is
// false for a record whose EID
// is an LCAF that this package does not interpret: it is read over, as RFC 8060 section 3 makes possible.
// A service comes out as one: Inside is set, the locator that bore it is gone.
func (r *reader) record(clearP bool) (m Mapping, ok bool) {
	m.TTL = TTL(r.u32())
	count, mask, flags := r.u8(), r.u8(), r.u16()
	m.Version = Version(r.u16()) & VersionMask
	m.Authoritative = flags&recordBitA != 0
	m.EID, ok = r.eid(mask)
	for range count {
		if r.err != nil {
			return Mapping{}, false
		}
		l := r.locator()
		// "the receiver of the Map-Reply MUST select the first set p-bit Locator" (RFC 9301 section 5.4).
		if clearP || l.Probed && slices.ContainsFunc(m.Locators, func(o Locator) bool { return o.Probed }) {
			l.Probed = false
		}
		m.Locators = append(m.Locators, l)
	}
	if r.err != nil {
		return Mapping{}, false
	}
	// "These bits are used only when the 'Locator Count' field is set to 0" (RFC 9301 section 5.4).
	if count == 0 {
		m.Action = Action(flags >> recordActionShift)
	}
	if count == 1 && ok {
		if p, service := inside(m.EID, m.Locators[0]); service {
			m.Inside, m.Locators, m.Action = p, nil, ActDrop
		}
	}
	slices.SortStableFunc(m.Locators, CompareLocators)
	return m, ok
}

func (r *reader) locator() Locator {
	l := Locator{Priority: r.u8(), Weight: r.u8(), MPriority: r.u8(), MWeight: r.u8()}
	flags := r.u16()
	l.Local, l.Probed, l.Reachable = flags&locatorBitL != 0, flags&locatorBitP != 0, flags&locatorBitR != 0
	a := r.address()
	if l.LCAF = a.lcaf; a.lcaf == "" {
		l.RLOC = a.addr.Unmap()
	}
	return l
}

// records reads n records; the count is not trusted: space is taken for what is there.
func (r *reader) records(n uint8, clearP bool) []Mapping {
	var ms []Mapping
	for range n {
		m, ok := r.record(clearP)
		if r.err != nil {
			return nil
		}
		if ok {
			ms = append(ms, m)
		}
	}
	return ms
}

// appendRecords writes ms. clearP leaves the p-bits out: "The p-bit MUST NOT be set for Locator-Set
// records sent in Map-Request and Map-Register messages" (RFC 9301 section 5.4).
func appendRecords(b []byte, ms []Mapping, clearP bool) ([]byte, error) {
	var err error
	for i := range ms {
		if b, err = appendRecord(b, &ms[i], clearP); err != nil {
			return nil, err
		}
	}
	return b, nil
}

func appendRecord(b []byte, m *Mapping, clearP bool) ([]byte, error) {
	switch {
	case !m.EID.IsValid():
		return nil, fmt.Errorf("%w: EID %v", ErrUnencodable, m.EID)
	case len(m.Locators) > maxCount:
		return nil, fmt.Errorf("%w: %v has %d locators", ErrUnencodable, m.EID, len(m.Locators))
	case m.Version > VersionMask:
		return nil, fmt.Errorf("%w: %v has version %d", ErrUnencodable, m.EID, m.Version)
	case m.Action > maxAction:
		return nil, fmt.Errorf("%w: %v has action %d", ErrUnencodable, m.EID, m.Action)
	}
	locators := m.Locators
	if m.IsService() {
		if err := CheckService(m.EID, m.Inside); err != nil {
			return nil, fmt.Errorf("%w: %w", ErrUnencodable, err)
		}
		if len(m.Locators) > 0 {
			return nil, fmt.Errorf("%w: service address %v has locators", ErrUnencodable, m.EID)
		}
		locators = []Locator{insideLocator(m.EID, m.Inside)}
	}
	var flags uint16
	if len(locators) == 0 {
		flags = uint16(m.Action) << recordActionShift
	}
	if m.Authoritative {
		flags |= recordBitA
	}
	b = binary.BigEndian.AppendUint32(b, uint32(m.TTL))
	b = append(b, uint8(len(locators)), maskLen(m.EID))
	b = binary.BigEndian.AppendUint16(b, flags)
	b = binary.BigEndian.AppendUint16(b, uint16(m.Version))
	b, err := appendEID(b, m.EID)
	if err != nil {
		return nil, err
	}
	if !slices.IsSortedFunc(locators, CompareLocators) {
		locators = slices.SortedStableFunc(slices.Values(locators), CompareLocators)
	}
	for _, l := range locators {
		if l.LCAF != "" && !l.LCAF.valid() {
			return nil, fmt.Errorf("%w: %v has a broken LCAF", ErrUnencodable, m.EID)
		}
		b = append(b, l.Priority, l.Weight, l.MPriority, l.MWeight)
		var flags uint16
		if l.Local {
			flags |= locatorBitL
		}
		if l.Probed && !clearP {
			flags |= locatorBitP
		}
		if l.Reachable {
			flags |= locatorBitR
		}
		b = binary.BigEndian.AppendUint16(b, flags)
		if l.LCAF != "" {
			b = append(b, l.LCAF...)
		} else {
			b = appendAddr(b, l.RLOC)
		}
	}
	return b, nil
}

// maskLen is the mask length of e as it travels.
func maskLen(e EID) uint8 { return uint8(MakeEID(e.IID, e.Prefix).Prefix.Bits()) }
