package mapserver

import "github.com/tabi-lisp/tabi/lisp"

// verdict is what the order of versions says of a record.
type verdict uint8

const (
	refresh verdict = iota + 1 // the holder repeats what is stored
	update                     // the holder comes with a newer version
	claim                      // another xTR takes the EID over
	older                      // refused: older than what is stored
	tieLost                    // refused: as new as what is stored, from a higher xTR-ID
)

// order decides who is right about an EID (DESIGN.md section 3, RFC 9302 section 6): stored is what
// was accepted last, withdrawn or not; version and x are what a Map-Register says. It also gives the
// version that the mapping has if the record is accepted. invented reports that this Map-Server chose it.
func order(stored lisp.Mapping, version lisp.Version, x lisp.XTRID) (v verdict, accepted lisp.Version, invented bool) {
	switch {
	case x == stored.XTRID && (version == 0 || version == stored.Version):
		return refresh, stored.Version, false
	case version == 0:
		return claim, stored.Version.Next(), true
	case version == stored.Version:
		if x.Compare(stored.XTRID) < 0 {
			return claim, version, false
		}
		return tieLost, stored.Version, false
	case !version.Newer(stored.Version):
		return older, stored.Version, false
	case x == stored.XTRID:
		return update, version, false
	}
	return claim, version, false
}
