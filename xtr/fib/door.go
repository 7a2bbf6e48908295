package fib

import "encoding/binary"

// lisp0 is the one door between the kernel's data plane and Go: a TAP device. An Ethernet frame that
// crosses it carries no MAC addresses but, in their 12 bytes, what one side tells the other. The
// EtherType and the inner IP packet follow as on any wire.
//
//	up:    0x06, Reason, IID (3 bytes), UpFlags, hold or port (2), seq (4)
//	down:  0x06, DownDo, IID (3 bytes), DownFlags, hold (2), zero (4)
//
// A frame whose first byte is not 0x06 was routed to the device by the host's own stack.

// DoorLen is the length in bytes of the metadata at the head of a frame.
const DoorLen = 12

// doorMagic is the first byte: a locally administered unicast MAC address that no device of ours has.
const doorMagic = 0x06

// Up is what the kernel says of a frame that it hands up.
type Up struct {
	Reason Reason
	IID    uint32 // 0..lisp.MaxInstanceID
	Flags  UpFlags
	Hold   uint16 // hold queue, with UpHold
	Port   uint16 // port that the packet came from, or with UpCopy went to; 0 = no VM interface
	// Seq is, with UpCopy, the number of the packet on its port, modulo 2^32: the first packet after the
	// port's given-counter was n has the number n+1. Frames with the same number that follow one another
	// are parts of one packet, unless UpSplit says otherwise. With UpTooBig it is the MTU in bytes. With
	// UpTranslate it is the largest packet, in bytes and of the family that it is translated to, that the
	// way on takes; 0 = not known.
	Seq uint32
}

// UpFlags say more of a frame that was handed up.
type UpFlags uint8

const (
	// UpTransit: the packet came decapsulated from the underlay.
	UpTransit UpFlags = 1 << iota
	// UpReplay: it was a replay, its outer source port was 4341.
	UpReplay
	// UpSplit, with UpCopy: the interface's reader gets the segments of this super-packet one by one,
	// and Seq is the first one's number. Should the frames of the copy come up as segments too, they all
	// bear that first number.
	UpSplit
)

// Append appends the DoorLen bytes. Of Hold and Port it writes the one that Reason asks for.
func (u Up) Append(b []byte) []byte {
	q := u.Port
	if u.Reason == UpHold {
		q = u.Hold
	}
	b = appendDoor(b, byte(u.Reason), u.IID, byte(u.Flags), q)
	return binary.BigEndian.AppendUint32(b, u.Seq)
}

// DecodeUp reads the metadata of a frame that was read from lisp0. It reports false when the frame is
// shorter than its metadata or was routed here by the host's stack.
func DecodeUp(frame []byte) (Up, bool) {
	what, iid, flags, q, ok := decodeDoor(frame)
	if !ok {
		return Up{}, false
	}
	u := Up{Reason: Reason(what), IID: iid, Flags: UpFlags(flags), Seq: binary.BigEndian.Uint32(frame[8:])}
	if u.Reason == UpHold {
		u.Hold = q
	} else {
		u.Port = q
	}
	return u, true
}

// Down is what Go asks of the kernel for a frame that it writes to lisp0.
type Down struct {
	Do    DownDo
	IID   uint32 // 0..lisp.MaxInstanceID
	Flags DownFlags
	Hold  uint16 // with DownReinjected
}

// DownDo is what to do with a frame that comes down.
type DownDo uint8

const (
	// DownForward: look the destination up and do what its route says, but never divert it to a hold.
	DownForward DownDo = iota + 1
	// DownNative: give it to the host's stack.
	DownNative
)

// DownFlags say more of a frame that comes down.
type DownFlags uint8

const (
	// DownReinjected: it counts as one of the packets that were diverted to Hold.
	DownReinjected DownFlags = 1 << iota
	// DownReplay: encapsulate it with UDP source port 4341.
	DownReplay
	// DownTransit: treat it as a packet that came decapsulated from the underlay.
	DownTransit
)

// Append appends the DoorLen bytes.
func (d Down) Append(b []byte) []byte {
	b = appendDoor(b, byte(d.Do), d.IID, byte(d.Flags), d.Hold)
	return append(b, 0, 0, 0, 0)
}

// DecodeDown reads the metadata of a frame that Go wrote to lisp0. It reports false when the frame is
// shorter than its metadata or has none.
func DecodeDown(frame []byte) (Down, bool) {
	what, iid, flags, hold, ok := decodeDoor(frame)
	if !ok {
		return Down{}, false
	}
	return Down{Do: DownDo(what), IID: iid, Flags: DownFlags(flags), Hold: hold}, true
}

func appendDoor(b []byte, what byte, iid uint32, flags byte, q uint16) []byte {
	b = append(b, doorMagic, what, byte(iid>>16), byte(iid>>8), byte(iid), flags)
	return binary.BigEndian.AppendUint16(b, q)
}

func decodeDoor(frame []byte) (what byte, iid uint32, flags byte, q uint16, ok bool) {
	if len(frame) < DoorLen || frame[0] != doorMagic {
		return 0, 0, 0, 0, false
	}
	iid = uint32(frame[2])<<16 | uint32(frame[3])<<8 | uint32(frame[4])
	return frame[1], iid, frame[5], binary.BigEndian.Uint16(frame[6:]), true
}
