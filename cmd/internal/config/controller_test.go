package config

import (
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/tabi-lisp/tabi/controller"
)

func parseController(t *testing.T, more string) (controller.Config, error) {
	t.Helper()
	text, err := Example("controller")
	if err != nil {
		t.Fatal(err)
	}
	c, err := Parse("controller.yaml", []byte(text+more))
	if err != nil {
		return controller.Config{}, err
	}
	return c.(*Controller).Core, nil
}

// Every wait of the controller can be configured, by its own name, and each is read into its own field.
func TestEveryTimingOfTheController(t *testing.T) {
	text, err := Reference("controller")
	if err != nil {
		t.Fatal(err)
	}
	c, err := Parse("controller.yaml", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	v := reflect.ValueOf(c.(*Controller).Core.Timing)
	raw := reflect.TypeFor[rawTiming]()
	for i := range v.NumField() {
		name := v.Type().Field(i).Name
		f, ok := raw.FieldByName(name)
		if !ok {
			t.Errorf("no key for Timing.%s", name)
			continue
		}
		if want, err := time.ParseDuration(f.Tag.Get("def")); err != nil || v.Field(i).Interface() != want {
			t.Errorf("Timing.%s is %v, want %v (%v)", name, v.Field(i).Interface(), want, err)
		}
		core, err := parseController(t, "timing:\n  "+f.Tag.Get("yaml")+": 1234ms\n")
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		want := reflect.New(v.Type()).Elem()
		want.FieldByName(name).SetInt(int64(1234 * time.Millisecond))
		if d := cmp.Diff(want.Interface(), core.Timing); d != "" {
			t.Errorf("%s: %s", name, d)
		}
	}
}

func TestMigrationsOfTheController(t *testing.T) {
	c, err := parseController(t, "migrations: {per_link: 3, keep: 7}\nkeep_moves: 9\n")
	if err != nil || c.PerLink != 3 || c.KeepMigrations != 7 || c.KeepMoves != 9 {
		t.Errorf("%+v %v", c, err)
	}
	for more, want := range map[string]string{
		"migrations: {per_link: 0}\n": "0: want at least 1",
		"keep_moves: -1\n":            "-1: want at least 1",
		"timing: {poll: 0s}\n":        "0s: want more than 0",
		"timing: {pol: 1s}\n":         `unknown field "pol"`,
	} {
		if _, err := parseController(t, more); err == nil || !strings.Contains(err.Error(), want) || !strings.HasPrefix(err.Error(), "controller.yaml:") {
			t.Errorf("%q: %v, want %q", more, err, want)
		}
	}
}
