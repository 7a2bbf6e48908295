package config

import (
	"encoding"
	"fmt"
	"net"
	"strconv"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/token"
)

// scalar is one value of a configuration file that remembers where it stood, so that whatever is found
// wrong with it later, alone or beside another key, is reported with its line and column.
type scalar[T any] struct {
	V   T
	Set bool
	tok *token.Token
}

// UnmarshalYAML reads the value from its text; the library would lose the position of a bad one.
func (s *scalar[T]) UnmarshalYAML(n ast.Node) error {
	s.tok = n.GetToken()
	if _, ok := n.(ast.ScalarNode); !ok {
		return failAt(s.tok, "want a single value, not a list or a mapping")
	}
	text := s.tok.Value
	var err error
	switch v := any(&s.V).(type) {
	case *string:
		*v = text
	case *bool:
		switch text {
		case "true":
			*v = true
		case "false":
			*v = false
		default:
			err = fmt.Errorf("%q is neither true nor false", text)
		}
	case *uint8:
		err = parseUint(v, text, 8)
	case *uint16:
		err = parseUint(v, text, 16)
	case *uint32:
		err = parseUint(v, text, 32)
	case *uint64:
		err = parseUint(v, text, 64)
	case *int:
		if *v, err = strconv.Atoi(text); err != nil {
			err = fmt.Errorf("%q is not a number", text)
		}
	case *time.Duration:
		if *v, err = time.ParseDuration(text); err != nil {
			err = fmt.Errorf("%q is not a duration such as 200ms, 30s or 5m", text)
		}
	case *net.HardwareAddr:
		if *v, err = net.ParseMAC(text); err == nil && len(*v) != 6 {
			err = fmt.Errorf("%q is not a 48-bit MAC address", text)
		}
	case encoding.TextUnmarshaler:
		err = v.UnmarshalText([]byte(text))
	default:
		panic(fmt.Sprintf("config: no reader for %T", s.V))
	}
	if err != nil {
		return failAt(s.tok, "%v", err)
	}
	s.Set = true
	return nil
}

// or is the value, or def where the key was left out.
func (s scalar[T]) or(def T) T {
	if s.Set {
		return s.V
	}
	return def
}

func parseUint[T uint8 | uint16 | uint32 | uint64](v *T, text string, bits int) error {
	n, err := strconv.ParseUint(text, 10, bits)
	if err != nil {
		return fmt.Errorf("%q is not a number in 0..%d", text, uint64(1)<<bits-1)
	}
	*v = T(n)
	return nil
}

// failAt makes an error that prints like the library's own, with the line it speaks of.
func failAt(tok *token.Token, format string, a ...any) error {
	return &yaml.SyntaxError{Message: fmt.Sprintf(format, a...), Token: tok}
}

// values unwraps a list.
func values[T any](in []scalar[T]) []T {
	out := make([]T, len(in))
	for i, s := range in {
		out[i] = s.V
	}
	return out
}
