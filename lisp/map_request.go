package lisp

import (
	"encoding/binary"
	"fmt"
)

// Bits of the first word of a Map-Request (RFC 9301 section 5.2; I: RFC 9437 section 4).
const (
	requestBitA     = 0x08000000
	requestBitM     = 0x04000000
	requestBitP     = 0x02000000
	requestBitS     = 0x01000000
	requestBitp     = 0x00800000
	requestBits     = 0x00400000
	requestBitI     = 0x00100000
	requestBitL     = 0x00004000
	requestBitD     = 0x00002000
	requestIRCShift = 8
	requestIRCMask  = 0x1f

	requestRecordBitN = 0x80 // RFC 9437 section 4
)

// maxITRRLOCs is the largest number of ITR-RLOCs: 5 bits travel, which count those after the first.
const maxITRRLOCs = requestIRCMask + 1

func (m *MapRequest) append(b []byte) ([]byte, error) {
	// "At least one (ITR-RLOC-AFI, ITR-RLOC Address) pair MUST be encoded" (RFC 9301 section 5.2).
	if n := len(m.ITRRLOCs); n == 0 || n > maxITRRLOCs {
		return nil, fmt.Errorf("%w: %d ITR-RLOCs", ErrUnencodable, n)
	}
	flags := bit(m.Authoritative, requestBitA) | bit(m.Reply != nil, requestBitM) | bit(m.Probe, requestBitP) |
		bit(m.SMR, requestBitS) | bit(m.PITR, requestBitp) | bit(m.SMRInvoked, requestBits) |
		bit(m.HasXTRID, requestBitI) | bit(m.LocalXTR, requestBitL) | bit(m.DontReply, requestBitD) |
		uint32(len(m.ITRRLOCs)-1)<<requestIRCShift
	b, err := appendHead(b, TypeMapRequest, flags, len(m.Records), m.Nonce)
	if err != nil {
		return nil, err
	}
	if m.SourceEID == (EID{}) {
		b = binary.BigEndian.AppendUint16(b, afiNone)
	} else if b, err = appendEID(b, m.SourceEID); err != nil {
		return nil, err
	}
	for _, a := range m.ITRRLOCs {
		b = appendAddr(b, a)
	}
	for _, rec := range m.Records {
		b = append(b, uint8(bit(rec.Notify, requestRecordBitN)), maskLen(rec.EID))
		if b, err = appendEID(b, rec.EID); err != nil {
			return nil, err
		}
	}
	if m.Reply != nil {
		if b, err = appendRecord(b, m.Reply, true); err != nil {
			return nil, err
		}
	}
	if m.HasXTRID {
		b = appendXTRID(b, m.XTRID, m.SiteID)
	}
	return b, nil
}

func decodeMapRequest(r *reader) *MapRequest {
	w := r.u32()
	m := MapRequest{
		Authoritative: w&requestBitA != 0,
		Probe:         w&requestBitP != 0,
		SMR:           w&requestBitS != 0,
		PITR:          w&requestBitp != 0,
		SMRInvoked:    w&requestBits != 0,
		LocalXTR:      w&requestBitL != 0,
		DontReply:     w&requestBitD != 0,
		Nonce:         r.u64(),
	}
	if src := r.address(); src.addr.IsValid() {
		m.SourceEID = HostEID(src.iid, src.addr)
	}
	for range w>>requestIRCShift&requestIRCMask + 1 {
		if r.err != nil {
			return nil
		}
		// AFI 0 means something here (RFC 9437 section 5: unsubscribe), an LCAF that is not ours nothing.
		if a := r.address(); a.lcaf == "" {
			m.ITRRLOCs = append(m.ITRRLOCs, a.addr.Unmap())
		}
	}
	if len(m.ITRRLOCs) == 0 {
		r.fail(fmt.Errorf("%w: no ITR-RLOC is an IP address", ErrMalformed))
	}
	for range uint8(w) {
		if r.err != nil {
			return nil
		}
		flags, mask := r.u8(), r.u8()
		if e, ok := r.eid(mask); ok {
			m.Records = append(m.Records, RequestRecord{EID: e, Notify: flags&requestRecordBitN != 0})
		}
	}
	if w&requestBitM != 0 {
		if rec, ok := r.record(true); ok {
			m.Reply = &rec
		}
	}
	// "If the I-bit is set, but the Site-ID and/or xTR-ID are not included ... MUST drop the message"
	// (RFC 9437 section 4).
	if m.HasXTRID = w&requestBitI != 0; m.HasXTRID {
		m.XTRID, m.SiteID = r.xtrID()
	}
	if r.err != nil {
		return nil
	}
	return &m
}
