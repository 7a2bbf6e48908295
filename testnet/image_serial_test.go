package testnet

import (
	"strings"
	"testing"
	"unicode/utf8"
)

func TestGuestTrouble(t *testing.T) {
	for _, c := range []struct {
		name, console, line string
		pageLoss, ok        bool
	}{
		{"nothing said", "", "", false, false},
		{"a good boot", "guest: up\r\nguest: serving\r\n", "", false, false},
		{"the trap", "guest: serving\r\n[   31.004] virtio_net virtio0: output.0:id 0 is not a head!\r\n", "[   31.004] virtio_net virtio0: output.0:id 0 is not a head!", true, true},
		{"the other ring", "x\nvirtio_net virtio0: input.0:id 12 is not a head!", "virtio_net virtio0: input.0:id 12 is not a head!", true, true},
		{"beyond the ring", "virtio_net virtio0: input.0:id 40000 out of range", "virtio_net virtio0: input.0:id 40000 out of range", true, true},
		{"what follows from it", "BUG: Bad page state in process guest\nvirtio_blk virtio1: requests:id 3 is not a head!\n", "virtio_blk virtio1: requests:id 3 is not a head!", true, true},
		{"dead for another reason", "[ 1.0] Kernel panic - not syncing: Attempted to kill init!\n", "[ 1.0] Kernel panic - not syncing: Attempted to kill init!", false, true},
		{"the program", "guest: the program ended: 2\n", "guest: the program ended: 2", false, true},
		{"somebody's head", "the user 7 is not a head! of state\n", "", false, false},
	} {
		got, ok := GuestTrouble([]byte(c.console))
		if ok != c.ok || got.PageLoss != c.pageLoss || got.Line != c.line {
			t.Errorf("%s: %+v %v", c.name, got, ok)
		}
		if ok && !strings.Contains(got.String(), "emulator") == c.pageLoss {
			t.Errorf("%s: %s", c.name, got)
		}
	}
}

func TestGuestTroubleInNoFile(t *testing.T) {
	if _, ok, err := GuestTroubleIn(t.TempDir() + "/none"); ok || err != nil {
		t.Error(ok, err)
	}
	if _, _, err := GuestTroubleIn(t.TempDir()); err == nil {
		t.Error("a directory is a console")
	}
}

func FuzzGuestTrouble(f *testing.F) {
	f.Add([]byte("a\nvirtio_net virtio0: output.0:id 0 is not a head!\r\nb"))
	f.Add([]byte("\xff\x1b[0mKernel panic"))
	f.Fuzz(func(t *testing.T, b []byte) {
		got, ok := GuestTrouble(b)
		if ok == (got == Trouble{}) && ok {
			t.Errorf("trouble without a word: %q", b)
		}
		if len(got.Line) > 200 || !utf8.ValidString(got.Line) || strings.ContainsAny(got.Line, "\n\r") {
			t.Errorf("%q", got.Line)
		}
	})
}
