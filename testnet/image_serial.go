package testnet

import (
	"bytes"
	"fmt"
	"os"
	"regexp"
	"strings"
)

// Trouble is what a guest's console says of a guest that is broken.
type Trouble struct {
	// PageLoss: QEMU's software emulation (TCG) can lose pages that the guest wrote while a slow pre-copy went on. The
	// guest arrives with a queue of its network card from another time, and the card is dead from then on. That is not
	// a loss of the network's, and a run with it proves nothing.
	PageLoss bool
	// Line is what the console said first.
	Line string
}

func (t Trouble) String() string {
	if t.PageLoss {
		return fmt.Sprintf("the emulator lost pages of the guest's memory in the migration, not the network its packets: the guest's console says %q; "+
			"copy memory over a faster path, or migrate by post-copy or stop-and-copy", t.Line)
	}
	return fmt.Sprintf("the guest broke down: its console says %q", t.Line)
}

// Signs of trouble, worst first. A ring that the driver and the device see differently is what lost pages look like; a
// guest may break down for other reasons.
var (
	// drivers/virtio/virtio_ring.c: the device has used a descriptor that the driver never gave it.
	pageLossSigns = regexp.MustCompile(`(?:input|output|requests|control)\S*:id \d+ (?:is not a head!|out of range)`)
	brokenSigns   = regexp.MustCompile(`NETDEV WATCHDOG|Kernel panic|kernel BUG at|BUG: |Oops|general protection fault|unable to handle|` +
		`list_(?:add|del) corruption|Bad page|guest: the program ended|guest: no module`)
)

// GuestTrouble looks for signs of trouble in what a guest's console said; ok is false when there are none. What a
// console says of lost pages goes before all else, for the rest follows from it.
func GuestTrouble(console []byte) (t Trouble, ok bool) {
	for _, s := range []struct {
		sign     *regexp.Regexp
		pageLoss bool
	}{{pageLossSigns, true}, {brokenSigns, false}} {
		if at := s.sign.FindIndex(console); at != nil {
			return Trouble{PageLoss: s.pageLoss, Line: lineAt(console, at[0])}, true
		}
	}
	return Trouble{}, false
}

// GuestTroubleIn is [GuestTrouble] of a file. A file that is not there has none: the guest has said nothing.
func GuestTroubleIn(path string) (t Trouble, ok bool, err error) {
	b, err := os.ReadFile(path)
	if os.IsNotExist(err) {
		return Trouble{}, false, nil
	}
	if err != nil {
		return Trouble{}, false, fmt.Errorf("testnet: guest's console: %w", err)
	}
	t, ok = GuestTrouble(b)
	return t, ok, nil
}

// lineAt is the line around an offset, printable and of a bearable length.
func lineAt(b []byte, at int) string {
	begin := bytes.LastIndexByte(b[:at], '\n') + 1
	end := len(b)
	if i := bytes.IndexByte(b[at:], '\n'); i >= 0 {
		end = at + i
	}
	line := strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r == '\uFFFD' {
			return -1
		}
		return r
	}, string(b[begin:end]))
	if len(line) > 200 {
		line = line[:200]
	}
	return strings.TrimSpace(strings.ToValidUTF8(line, ""))
}
