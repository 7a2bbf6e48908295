package lisp

// notify is what a Map-Notify and a Map-Notify-Ack have in common: everything but the type (RFC 9301
// section 5.7).
type notify struct {
	Nonce    uint64
	Auth     Auth
	Records  []Mapping
	HasXTRID bool
	XTRID    XTRID
	SiteID   SiteID
}

func (m *MapNotify) append(b []byte) ([]byte, error) { return (*notify)(m).append(b, TypeMapNotify) }

func (m *MapNotifyAck) append(b []byte) ([]byte, error) {
	return (*notify)(m).append(b, TypeMapNotifyAck)
}

func decodeMapNotify(r *reader) *MapNotify       { return (*MapNotify)(decodeNotify(r)) }
func decodeMapNotifyAck(r *reader) *MapNotifyAck { return (*MapNotifyAck)(decodeNotify(r)) }

func (m *notify) append(b []byte, t Type) ([]byte, error) {
	b, err := appendHead(b, t, 0, len(m.Records), m.Nonce)
	if err != nil {
		return nil, err
	}
	if b, err = m.Auth.append(b); err != nil {
		return nil, err
	}
	if b, err = appendRecords(b, m.Records, false); err != nil {
		return nil, err
	}
	if m.HasXTRID {
		b = appendXTRID(b, m.XTRID, m.SiteID)
	}
	return b, nil
}

// Lengths of what may follow the last record of a Map-Notify.
const (
	lenXTRID       = 16
	lenXTRIDSiteID = 24
)

// decodeNotify finds out by what is left after the last record whether an xTR-ID follows: the first
// word has no bit for it, peers put one in different places, and some send no Site-ID.
func decodeNotify(r *reader) *notify {
	w := r.u32()
	m := notify{Nonce: r.u64(), Auth: r.auth(), Records: r.records(uint8(w), false)}
	switch r.left() {
	case lenXTRIDSiteID:
		m.HasXTRID = true
		m.XTRID, m.SiteID = r.xtrID()
	case lenXTRID:
		m.HasXTRID = true
		copy(m.XTRID[:], r.bytes(lenXTRID))
	}
	if r.err != nil {
		return nil
	}
	return &m
}

// Mappings are the records with the xTR-ID and Site-ID of the message.
func (m *MapNotify) Mappings() []Mapping { return withXTRID(m.Records, m.XTRID, m.SiteID) }

// Ack is the Map-Notify-Ack that answers m, to be signed (RFC 9301 section 5.7: "The fields of the
// Map-Notify-Ack are copied from the corresponding Map-Notify message").
func (m *MapNotify) Ack() *MapNotifyAck {
	ack := MapNotifyAck(*m)
	return &ack
}
