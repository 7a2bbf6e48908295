package map646

import (
	"encoding/binary"
	"net/netip"

	"github.com/tabi-lisp/tabi/xtr/checksum"
)

// The ICMP Extension Structure (RFC 4884 sections 7, 8) and the object that names an interface by its address (RFC 5837
// section 4).
const (
	extensionHeaderLen = 4
	extensionVersion   = 2
	minDatagram        = 128 // RFC 4884 section 3

	classInterface   = 2
	typeArrivalAddr  = 0x04 // role 0, the interface that the packet arrived at; with an address
	afiIPv6          = 2
	interfaceLen     = 4 + 4 + 16 // object header, sub-object header, address
	maxDatagramWords = 255
)

// splitError4 splits what an ICMPv4 error carries: the packet inside, and the extension structure behind it, if it has
// one.
func splitError4(m []byte) (datagram, extension []byte) {
	switch m[0] {
	case icmpUnreachable, icmpTimeExceeded, icmpParameter:
		return split(m[icmpHeaderLen:], 4*int(m[5]))
	}
	return m[icmpHeaderLen:], nil
}

// splitError6 does the same for ICMPv6.
func splitError6(m []byte) (datagram, extension []byte) {
	switch m[0] {
	case icmp6Unreachable, icmp6TimeExceeded:
		return split(m[icmpHeaderLen:], 8*int(m[4]))
	}
	return m[icmpHeaderLen:], nil
}

func split(b []byte, n int) (datagram, extension []byte) {
	if n == 0 || n > len(b) { // RFC 4884 section 5.4; a length beyond the end means nothing (section 9)
		return b, nil
	}
	return b[:n], b[n:]
}

// appendExtension completes an ICMP error whose packet inside begins at start: at most room bytes from there, with an
// extension structure behind it. That has the objects of extension, and, if origin is valid, one that names it. It
// returns the length of the padded packet inside in words of unit bytes; 0 = there is no extension.
func appendExtension(out []byte, start, room, unit int, extension []byte, origin netip.Addr) ([]byte, int) {
	// Objects cannot be added to what cannot be read.
	known := len(extension) >= extensionHeaderLen && extension[0]>>4 == extensionVersion && len(extension)%4 == 0
	if origin.IsValid() && len(extension) > 0 && !known {
		origin = netip.Addr{}
	}
	n := len(extension)
	if origin.IsValid() {
		if n == 0 {
			n = extensionHeaderLen
		}
		n += interfaceLen
	}
	length := len(out) - start
	if n == 0 {
		return out[:start+min(length, room)], 0
	}
	padded := max(minDatagram, (length+unit-1)/unit*unit)
	padded = min(padded, maxDatagramWords*unit, (room-n)/unit*unit)
	if padded < minDatagram {
		return out[:start+min(length, room)], 0 // no room for the extension
	}
	if length > padded {
		out = out[:start+padded]
	}
	for len(out) < start+padded {
		out = append(out, 0)
	}
	at := len(out)
	out = append(out, extension...)
	if !origin.IsValid() {
		return out, padded / unit
	}
	if len(extension) == 0 {
		out = append(out, extensionVersion<<4, 0, 0, 1)
	}
	out = append(out, 0, interfaceLen, classInterface, typeArrivalAddr, 0, afiIPv6, 0, 0)
	a := origin.As16()
	out = append(out, a[:]...)
	if x := out[at:]; x[2] != 0 || x[3] != 0 { // 0 = no checksum (RFC 4884 section 7)
		x[2], x[3] = 0, 0
		binary.BigEndian.PutUint16(x[2:], checksum.Of(0, x))
	}
	return out, padded / unit
}
