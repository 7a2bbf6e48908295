package lisp

// Version is a Map-Version number (RFC 9302 section 6): 12 bits, compared with serial-number
// arithmetic modulo 4096. 0 is the null version: the mapping has none.
type Version uint16

// VersionMask keeps the 12 bits that travel on the wire.
const VersionMask Version = 0x0fff

// Next is the version after v; it skips the null version when it wraps (RFC 9302 section 6.1).
func (v Version) Next() Version {
	if v = (v + 1) & VersionMask; v == 0 {
		return 1
	}
	return v
}

// Newer reports whether v is newer than o (RFC 9302 section 6): ahead of it by less than half of the
// circle, or by just half and the greater number. The null version is older than any.
func (v Version) Newer(o Version) bool {
	if v == 0 || v == o {
		return false
	}
	if o == 0 {
		return true
	}
	const half = (VersionMask + 1) / 2
	ahead := (v - o) & VersionMask
	return ahead < half || ahead == half && v > o
}
