package main

import (
	"bytes"
	"testing"
	"time"
)

func TestUDPDrops(t *testing.T) {
	const snmp = "Ip: Forwarding\nIp: 1\nUdp: InDatagrams NoPorts InErrors OutDatagrams RcvbufErrors SndbufErrors\nUdp: 10 1 7 10 7 2\nUdpLite: RcvbufErrors\nUdpLite: 5\n"
	if got := udpDrops(snmp); got != 7 {
		t.Errorf("IPv4: %d", got)
	}
	if got := udpDrops("Udp6InErrors 4\nUdp6RcvbufErrors                \t3\nUdpLite6RcvbufErrors 9\n"); got != 3 {
		t.Errorf("IPv6: %d", got)
	}
	if got := udpDrops("Udp: RcvbufErrors\nUdp: 1 2\nUdp6RcvbufErrors"); got != 0 {
		t.Errorf("broken: %d", got)
	}
}

func TestBacklogDrops(t *testing.T) {
	if got := backlogDrops("0000aaaa 00000010 00000000\n00000001 00000002\n\n"); got != 0x12 {
		t.Errorf("%d", got)
	}
}

func TestMachineOfThisKernel(t *testing.T) {
	m, err := machine()
	if err != nil || m.Name == "" || m.BootID == "" || m.Idle <= 0 {
		t.Errorf("%+v %v", m, err)
	}
}

func TestAncillary(t *testing.T) {
	message := func(level, kind uint32, value uint32) []byte {
		return []byte{20, 0, 0, 0, 0, 0, 0, 0, byte(level), 0, 0, 0, byte(kind), 0, 0, 0, byte(value), byte(value >> 8), 0, 0, 0, 0, 0, 0}
	}
	for _, c := range []struct {
		name  string
		oob   []byte
		hops  uint8
		drops uint32
	}{
		{"none", nil, 0, 0},
		{"IPv4", message(0, 2, 63), 63, 0},
		{"IPv6 and drops", append(message(41, 52, 61), message(1, 40, 300)...), 61, 300},
		{"cut", message(0, 2, 63)[:19], 0, 0},
		{"longer than it is", append([]byte{200}, message(0, 2, 63)[1:]...), 0, 0},
		{"shorter than a header", append([]byte{3}, message(0, 2, 63)[1:]...), 0, 0},
	} {
		if hops, drops := ancillary(c.oob); hops != c.hops || drops != c.drops {
			t.Errorf("%s: %d %d", c.name, hops, drops)
		}
	}
}

func FuzzAncillary(f *testing.F) {
	f.Add([]byte{20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 63, 0, 0, 0, 0, 0, 0, 0})
	f.Fuzz(func(_ *testing.T, b []byte) {
		ancillary(append(make([]byte, 0, len(b)+8), b...)) // never beyond its end
	})
}

// Every version of every block is told from all others.
func TestBlocksDiffer(t *testing.T) {
	seen := make(map[string]bool)
	b := make([]byte, blockSize)
	for number := range uint64(20) {
		for version := range uint64(20) {
			fillBlock(b, number, version+1)
			if seen[string(b[16:])] {
				t.Fatalf("block %d version %d looks like another", number, version+1)
			}
			seen[string(b[16:])] = true
		}
	}
	fillBlock(b, 3, 4)
	again := make([]byte, blockSize)
	fillBlock(again, 3, 4)
	if !bytes.Equal(b, again) {
		t.Error("the same block differs")
	}
}

func TestMemoryWriter(t *testing.T) {
	var m memory
	for _, bad := range []float64{-1, 1e9} {
		if err := m.set(bad); err == nil {
			t.Errorf("rate %v is taken", bad)
		}
	}
	if err := m.set(64); err != nil {
		t.Fatal(err)
	}
	for m.written() < 20 { // more than once around
		if m.stop == nil {
			t.Fatal("the writer has ended")
		}
		time.Sleep(time.Millisecond)
	}
	if err := m.set(0); err != nil || m.stop != nil {
		t.Error(err, m.stop)
	}
}
