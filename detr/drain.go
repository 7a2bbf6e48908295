package detr

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// drainState is whether an operator has drained this D-ETR: it then announces nothing and is registered nowhere,
// but forwards what still comes. It survives a restart.
type drainState struct {
	file  string // empty: it does not survive
	since time.Time
}

type drainFile struct {
	Since time.Time `json:"since"`
}

// DrainFile is where a D-ETR keeps in its state directory that it is drained; it is there only then.
const DrainFile = "drained.json"

// openDrain reads what a D-ETR of before has left.
func openDrain(dir string) (drainState, error) {
	var d drainState
	if dir == "" {
		return d, nil
	}
	d.file = filepath.Join(dir, DrainFile)
	b, err := os.ReadFile(d.file)
	if errors.Is(err, fs.ErrNotExist) {
		return d, nil
	}
	var f drainFile
	if err == nil {
		err = json.Unmarshal(b, &f)
	}
	if err == nil && f.Since.IsZero() {
		err = errors.New("it does not say since when")
	}
	if err != nil {
		return d, fmt.Errorf("detr: drain: %s: %w", d.file, err)
	}
	d.since = f.Since
	return d, nil
}

// Drained says since when a D-ETR with that state directory is drained; zero: it is not.
func Drained(dir string) (since time.Time, err error) {
	d, err := openDrain(dir)
	return d.since, err
}

func (d *drainState) on() bool { return !d.since.IsZero() }

// set writes down that we are drained, or not any more. Saying it again changes nothing.
func (d *drainState) set(on bool, now time.Time) error {
	if on == d.on() {
		return nil
	}
	var err error
	switch {
	case d.file == "":
	case on:
		err = writeFile(d.file, drainFile{now})
	default:
		if err = os.Remove(d.file); errors.Is(err, fs.ErrNotExist) {
			err = nil
		}
	}
	if err != nil {
		return fmt.Errorf("detr: drain: %w", err)
	}
	if d.since = now; !on {
		d.since = time.Time{}
	}
	return nil
}

// Drain withdraws everywhere all that this D-ETR stands for, or undoes that. What still comes is forwarded as
// before. It returns when it is decided and written down; see [DETR.Status] for how far it is.
func (d *DETR) Drain(ctx context.Context, on bool) error {
	var failed error
	err := d.ask(ctx, func(now time.Time) {
		if on != d.drain.on() {
			d.log.Info("drain", "drained", on)
		}
		failed = d.drain.set(on, now.Truncate(time.Millisecond))
	})
	return errors.Join(err, failed)
}

// Status is what a D-ETR is doing.
type Status struct {
	State string    `json:"state"` // serving, drained, or not-serving: it cannot
	Why   string    `json:"why"`   // it does not serve
	Since time.Time `json:"since"` // the state; zero: since the start
	// Withdrawn: nobody is known to believe any more that this D-ETR serves.
	Withdrawn  bool `json:"withdrawn"`
	Feed       bool `json:"feed"`       // alive
	DataPlane  bool `json:"data_plane"` // attached
	Registered int  `json:"registered"` // Map-Servers that may believe that we serve
	Servers    int  `json:"servers"`    // Map-Servers that there are
	Services   int  `json:"services"`   // in effect
	Ignored    int  `json:"ignored"`    // services that are not translated here
}

// Status says what this D-ETR is doing.
func (d *DETR) Status(ctx context.Context) (Status, error) {
	var s Status
	err := d.ask(ctx, func(now time.Time) {
		s = Status{State: "serving", Since: d.changed, Feed: d.feed && d.full, DataPlane: d.plane}
		switch {
		case d.drain.on():
			s.State, s.Why, s.Since = "drained", "an operator said so", d.drain.since
		case d.serving:
		case !d.plane:
			s.State, s.Why = "not-serving", "the data plane is not attached"
		case !d.full:
			s.State, s.Why = "not-serving", "no Map-Server has sent everything yet"
		default:
			s.State, s.Why = "not-serving", "no Map-Server is there"
		}
		s.Withdrawn = !d.serving && d.retry.IsZero()
		for _, r := range d.registrars() {
			s.Servers += len(r.servers)
			s.Registered += r.believing()
		}
		s.Withdrawn = s.Withdrawn && s.Registered == 0
	})
	s.Services, s.Ignored = d.anchor.translated()
	return s, err
}
