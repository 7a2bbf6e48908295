package qmp

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"
)

func TestDecode(t *testing.T) {
	for _, c := range []struct {
		name, line string
		check      func(message) bool
	}{
		{"greeting", `{"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}, "package": "Debian"}, "capabilities": ["oob"]}}`,
			func(m message) bool { return m.greeting != nil && m.greeting.version == "7.2.22" }},
		{"answer", `{"return": {"running": true}, "id": 7}`,
			func(m message) bool {
				return m.reply != nil && m.reply.id == 7 && string(m.reply.value) == `{"running": true}`
			}},
		{"answer of null", `{"return": null, "id": 8}`, func(m message) bool { return m.reply != nil && m.reply.id == 8 }},
		{"refusal", `{"id": 9, "error": {"class": "CommandNotFound", "desc": "no"}}` + "\r",
			func(m message) bool {
				return m.reply != nil && m.reply.id == 9 && m.reply.err.Class == "CommandNotFound" && m.reply.err.Desc == "no"
			}},
		{"refusal of what could not be read", `{"error": {"class": "GenericError", "desc": "JSON parse error"}}`,
			func(m message) bool { return m.reply != nil && m.reply.id == 0 && m.reply.err != nil }},
		{"event", `{"timestamp": {"seconds": 1795393552, "microseconds": 115149}, "event": "STOP"}`,
			func(m message) bool {
				return m.event != nil && m.event.Name == "STOP" && m.event.Data == nil && m.event.At.Equal(time.Unix(1795393552, 115149000))
			}},
		{"event with data", `{"timestamp": {"seconds": 1, "microseconds": 0}, "event": "MIGRATION", "data": {"status": "setup"}}`,
			func(m message) bool {
				var d struct{ Status string }
				return m.event != nil && m.event.Decode(&d) == nil && d.Status == "setup"
			}},
		{"event without a clock", `{"timestamp": {"seconds": -1, "microseconds": -1}, "event": "RESUME"}`,
			func(m message) bool { return m.event != nil && m.event.At.IsZero() }},
	} {
		m, err := decode([]byte(c.line))
		if err != nil || !c.check(m) {
			t.Errorf("%s: %+v %v", c.name, m, err)
		}
	}
	for name, line := range map[string]string{
		"empty":        "",
		"half":         `{"return": {}, "i`,
		"nothing":      `{}`,
		"no object":    `[1]`,
		"two in one":   `{"return": {}, "id": 1} {"return": {}, "id": 2}`,
		"id is text":   `{"return": {}, "id": "x"}`,
		"not JSON":     "QEMU 7.2.22 monitor - type 'help' for more information",
		"event is not": `{"event": 5}`,
	} {
		if m, err := decode([]byte(line)); err == nil {
			t.Errorf("%s: %+v", name, m)
		}
	}
	if _, err := decode([]byte(`{"x": 1}`)); !errors.Is(err, errNotAMessage) {
		t.Error(err)
	}
}

func TestParseNetwork(t *testing.T) {
	text := "virtio-net-pci.0: index=0,type=nic,model=virtio-net-pci,macaddr=52:54:00:00:00:0A\r\n" +
		" \\ n0: index=0,type=tap,ifname=tap-web,script=no,downscript=no\r\n" +
		"virtio-net-pci.0: index=1,type=nic,model=virtio-net-pci,macaddr=52:54:00:00:00:0A\r\n" +
		" \\ n0: index=1,type=tap,fd=12\r\n" +
		"card1: index=0,type=nic,model=e1000,macaddr=52:54:00:12:34:56\r\n" +
		" \\ n1: index=0,type=user,net=10.0.2.0,restrict=off\r\n" +
		"card2: index=0,type=nic,model=e1000,macaddr=52:54:00:12:34:57\r\n" +
		"hub 0\r\n \\ hub0port1: x\r\n" +
		"n9: index=0,type=tap,ifname=tap9,script=no\r\n"
	got, err := json.Marshal(parseNetwork(text))
	want := `[{"mac":"52:54:00:00:00:0a","device":"tap-web"},{"mac":"52:54:00:12:34:56","device":""},{"mac":"52:54:00:12:34:57","device":""}]`
	if err != nil || string(got) != want {
		t.Errorf("%s %v", got, err)
	}
	if got := parseNetwork(""); len(got) != 0 {
		t.Errorf("%+v", got)
	}
}

// Whatever a monitor says, it is one of the three or an error; what it is can be said again.
func FuzzDecode(f *testing.F) {
	for _, line := range []string{
		`{"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}, "package": ""}, "capabilities": ["oob"]}}`,
		`{"return": {"status": "running", "singlestep": false, "running": true}, "id": 3}`,
		`{"id": 4, "error": {"class": "GenericError", "desc": "x"}}`,
		`{"timestamp": {"seconds": 1795393552, "microseconds": 115149}, "event": "MIGRATION", "data": {"status": "setup"}}`,
		`{"timestamp": {"seconds": 9223372036854775807, "microseconds": 999999}, "event": "STOP"}`,
	} {
		f.Add([]byte(line))
	}
	f.Fuzz(func(t *testing.T, line []byte) {
		m, err := decode(line)
		set := 0
		for _, is := range []bool{m.greeting != nil, m.event != nil, m.reply != nil} {
			if is {
				set++
			}
		}
		if (err == nil) != (set == 1) {
			t.Fatalf("%d fields set, error %v", set, err)
		}
		if m.event != nil && !m.event.At.IsZero() {
			if _, err := m.event.At.MarshalJSON(); err != nil && m.event.At.Year() < 10000 {
				t.Error(err)
			}
		}
	})
}

func FuzzParseNetwork(f *testing.F) {
	f.Add("virtio-net-pci.0: index=0,type=nic,model=virtio-net-pci,macaddr=52:54:00:00:00:0A\r\n \\ n0: index=0,type=tap,ifname=tap-web,script=no\r\n")
	f.Add(" \\ n0: type=tap,ifname=x\n")
	f.Add("a: type=nic,macaddr=,type=tap\n \\ a: type=tap,ifname==,=\n")
	f.Fuzz(func(t *testing.T, text string) {
		for _, i := range parseNetwork(text) {
			if i.MAC == "" || strings.ContainsAny(i.MAC+i.Device, ",\n") {
				t.Errorf("%+v", i)
			}
		}
	})
}
