package qmp

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"time"
)

// maxLine bounds what a monitor may say in one line, in bytes. The longest answers (query-rx-filter) take kilobytes a
// network interface.
const maxLine = 16 << 20

// MonitorEvent is what a monitor tells unasked.
type MonitorEvent struct {
	Name string          // "STOP"
	At   time.Time       // QEMU's clock, to the microsecond
	Data json.RawMessage // an object, nil if there is none
}

// Decode reads the event's data into v. An event without data leaves v alone.
func (e MonitorEvent) Decode(v any) error {
	if e.Data == nil {
		return nil
	}
	if err := json.Unmarshal(e.Data, v); err != nil {
		return fmt.Errorf("qmp: data of event %s: %w", e.Name, err)
	}
	return nil
}

// Error is a monitor's refusal of a command.
type Error struct {
	Command string
	Class   string // "GenericError", "CommandNotFound", "DeviceNotFound", ...
	Desc    string // for people
}

func (e *Error) Error() string { return fmt.Sprintf("qmp: %s: %s", e.Command, e.Desc) }

// message is a line of a monitor. One of its fields is set.
type message struct {
	greeting *greeting
	event    *MonitorEvent
	reply    *reply
}

// greeting is the first line of a connection.
type greeting struct {
	version string // "7.2.22"
}

// reply is the answer to a command.
type reply struct {
	id    uint64          // of the command; 0 = the monitor could not read it
	value json.RawMessage // what was returned
	err   *Error          // why nothing was; its Command is empty
}

var errNotAMessage = errors.New("neither greeting, answer nor event")

// decode reads a line.
func decode(line []byte) (message, error) {
	var raw struct {
		QMP *struct {
			Version struct {
				QEMU struct{ Major, Minor, Micro uint32 }
			}
		}
		Event     *string
		Timestamp struct{ Seconds, Microseconds int64 }
		Data      json.RawMessage
		ID        *uint64
		Return    json.RawMessage
		Error     *struct{ Class, Desc string }
	}
	d := json.NewDecoder(bytes.NewReader(line))
	if err := d.Decode(&raw); err != nil {
		return message{}, fmt.Errorf("qmp: %w", err)
	}
	if rest := bytes.TrimSpace(line[d.InputOffset():]); len(rest) > 0 {
		return message{}, fmt.Errorf("qmp: %d bytes after a message", len(rest))
	}
	var id uint64
	if raw.ID != nil {
		id = *raw.ID
	}
	switch {
	case raw.QMP != nil:
		v := raw.QMP.Version.QEMU
		return message{greeting: &greeting{fmt.Sprintf("%d.%d.%d", v.Major, v.Minor, v.Micro)}}, nil
	case raw.Event != nil:
		// Both are -1 where the host's clock could not be read.
		e := &MonitorEvent{Name: *raw.Event, Data: bytes.Clone(raw.Data)}
		if t := raw.Timestamp; t.Seconds >= 0 && t.Seconds < 1<<40 && t.Microseconds >= 0 && t.Microseconds < 1e6 {
			e.At = time.Unix(t.Seconds, t.Microseconds*1000)
		}
		return message{event: e}, nil
	case raw.Error != nil:
		return message{reply: &reply{id: id, err: &Error{Class: raw.Error.Class, Desc: raw.Error.Desc}}}, nil
	case raw.Return != nil:
		return message{reply: &reply{id: id, value: bytes.Clone(raw.Return)}}, nil
	}
	return message{}, fmt.Errorf("qmp: %w", errNotAMessage)
}
