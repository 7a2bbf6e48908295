package lisp

// Bits of the first word of a Map-Register (RFC 9301 section 5.6).
const (
	registerBitP = 0x08000000
	registerBitS = 0x04000000
	registerBitI = 0x02000000
	registerBitE = 0x00001000
	registerBitT = 0x00000800
	registerBita = 0x00000400
	registerBitR = 0x00000200
	registerBitM = 0x00000100
)

func (m *MapRegister) append(b []byte) ([]byte, error) {
	flags := bit(m.ProxyReply, registerBitP) | bit(m.Security, registerBitS) | bit(m.HasXTRID, registerBitI) |
		bit(m.EIDNotify, registerBitE) | bit(m.UseTTL, registerBitT) | bit(m.Merge, registerBita) |
		bit(m.Mobile, registerBitR) | bit(m.WantMapNotify, registerBitM)
	b, err := appendHead(b, TypeMapRegister, flags, len(m.Records), m.Nonce)
	if err != nil {
		return nil, err
	}
	if b, err = m.Auth.append(b); err != nil {
		return nil, err
	}
	if b, err = appendRecords(b, m.Records, true); err != nil {
		return nil, err
	}
	if m.HasXTRID {
		b = appendXTRID(b, m.XTRID, m.SiteID)
	}
	return b, nil
}

func decodeMapRegister(r *reader) *MapRegister {
	w := r.u32()
	m := MapRegister{
		ProxyReply:    w&registerBitP != 0,
		Security:      w&registerBitS != 0,
		HasXTRID:      w&registerBitI != 0,
		EIDNotify:     w&registerBitE != 0,
		UseTTL:        w&registerBitT != 0,
		Merge:         w&registerBita != 0,
		Mobile:        w&registerBitR != 0,
		WantMapNotify: w&registerBitM != 0,
		Nonce:         r.u64(),
		Auth:          r.auth(),
		Records:       r.records(uint8(w), true),
	}
	if m.HasXTRID {
		m.XTRID, m.SiteID = r.xtrID()
	}
	if r.err != nil {
		return nil
	}
	return &m
}

// Mappings are the records with the xTR-ID and Site-ID of the message.
func (m *MapRegister) Mappings() []Mapping { return withXTRID(m.Records, m.XTRID, m.SiteID) }

func withXTRID(records []Mapping, x XTRID, s SiteID) []Mapping {
	ms := make([]Mapping, len(records))
	for i, rec := range records {
		if !rec.IsService() { // it is of no xTR, whoever speaks of it
			rec.XTRID, rec.SiteID = x, s
		}
		ms[i] = rec
	}
	return ms
}
