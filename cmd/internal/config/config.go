// Package config reads the configuration files of every role: YAML, strict, one file a daemon. What
// it returns is validated and not changed any more; the roles themselves know no YAML.
//
// Every key has its documentation, default and example in the tags of the raw structs, from which
// [Reference] and [Example] are printed.
package config

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/token"
)

// Roles are what a configuration file may be for, in the order in which help prints them: the daemons, and
// offline runs of map646.
var Roles = []string{"xtr", "mapserver", "detr", "controller", "router", "map646"}

// Common is what every role's file has.
type Common struct {
	Role     string
	Name     string
	Socket   string // path of the admin unix socket
	StateDir string
	LogLevel string // debug, info, warn or error
}

// RawCommon is exported because the YAML library sets no unexported embedded struct.
type RawCommon struct {
	Role     scalar[string] `yaml:"role" doc:"which daemon this file is for" req:"1"`
	Name     scalar[string] `yaml:"name" doc:"name of this daemon in logs and tables" def:"the host's name" ex:"nezu-hv1"`
	Socket   scalar[string] `yaml:"socket" doc:"admin socket: tabi show and tabi explain talk to it" def:"/run/tabi/ROLE.sock" ex:"/run/tabi/nezu-hv1.sock"`
	StateDir scalar[string] `yaml:"state_dir" doc:"what must survive a restart is kept here" def:"/var/lib/tabi/ROLE" ex:"/var/lib/tabi/nezu-hv1"`
	Log      rawLog         `yaml:"log" doc:"logging, to standard error"`
}

type rawLog struct {
	Level scalar[string] `yaml:"level" doc:"debug, info, warn or error" def:"info"`
}

// problems collects everything that is wrong with a file, so that one run shows it all.
type problems struct{ list []error }

func (p *problems) at(tok *token.Token, format string, a ...any) {
	if tok == nil {
		p.list = append(p.list, fmt.Errorf(format, a...))
		return
	}
	p.list = append(p.list, failAt(tok, format, a...))
}

// require complains of a key that must be there. parent is where the mapping that lacks it stands.
func require[T any](p *problems, s scalar[T], key string, parent *token.Token) {
	if !s.Set {
		p.at(parent, "%s is required", key)
	}
}

// Load reads and checks one file. Errors name the file, the line and the column. The result is one of
// *XTR, *MapServer, *DETR, *Controller, *Router, *Map646.
func Load(path string) (any, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read configuration: %w", err)
	}
	return Parse(path, b)
}

// LoadAs is [Load] for a daemon that wants the file of its own role.
func LoadAs[T any](path string) (*T, error) {
	c, err := Load(path)
	if err != nil {
		return nil, err
	}
	t, ok := c.(*T)
	if !ok {
		return nil, fmt.Errorf("%s: is the configuration of another role", path)
	}
	return t, nil
}

// Parse is [Load] on bytes; name is used in errors.
func Parse(name string, b []byte) (any, error) {
	var head struct {
		Role scalar[string] `yaml:"role"`
	}
	if err := yaml.Unmarshal(b, &head); err != nil {
		return nil, located(name, err)
	}
	if !head.Role.Set {
		return nil, fmt.Errorf("%s:1:1: role is required: one of %s", name, strings.Join(Roles, ", "))
	}
	r := newRaw(head.Role.V)
	if r == nil {
		return nil, located(name, failAt(head.Role.tok, "no role %q: want one of %s", head.Role.V, strings.Join(Roles, ", ")))
	}
	if err := yaml.UnmarshalWithOptions(b, r, yaml.Strict()); err != nil {
		return nil, located(name, err)
	}
	var p problems
	c := r.build(&p)
	if len(p.list) > 0 {
		for i, e := range p.list {
			p.list[i] = located(name, e)
		}
		return nil, errors.Join(p.list...)
	}
	return c, nil
}

// raw is the shape of one role's file.
type raw interface {
	build(p *problems) any
}

func newRaw(role string) raw {
	switch role {
	case "xtr":
		return &rawXTR{}
	case "mapserver":
		return &rawMapServer{}
	case "detr":
		return &rawDETR{}
	case "controller":
		return &rawController{}
	case "router":
		return &rawRouter{}
	case "map646":
		return &rawMap646{}
	}
	return nil
}

// located puts file:line:col in front of what the library or a check says, and the line itself behind.
func located(name string, err error) error {
	var ye yaml.Error
	if !errors.As(err, &ye) || ye.GetToken() == nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	pos := ye.GetToken().Position
	src := strings.TrimPrefix(yaml.FormatError(ye, false, true), "")
	if _, rest, ok := strings.Cut(src, "\n"); ok {
		src = "\n" + strings.TrimRight(rest, "\n")
	} else {
		src = ""
	}
	return fmt.Errorf("%s:%d:%d: %s%s", name, pos.Line, pos.Column, ye.GetMessage(), src)
}

func (r *RawCommon) common(p *problems) Common {
	c := Common{Role: r.Role.V, Name: r.Name.V, LogLevel: r.Log.Level.or("info")}
	if c.Name == "" {
		c.Name, _ = os.Hostname()
	}
	c.Socket = r.Socket.or("/run/tabi/" + c.Role + ".sock")
	c.StateDir = r.StateDir.or("/var/lib/tabi/" + c.Role)
	for _, f := range []scalar[string]{r.Socket, r.StateDir} {
		if f.Set && !filepath.IsAbs(f.V) {
			p.at(f.tok, "%q is not an absolute path", f.V)
		}
	}
	switch c.LogLevel {
	case "debug", "info", "warn", "error":
	default:
		p.at(r.Log.Level.tok, "log level %q: want debug, info, warn or error", c.LogLevel)
	}
	return c
}
