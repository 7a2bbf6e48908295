package detr

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/tabi-lisp/tabi/lisp"
)

// Enabled reports whether there is anything to translate.
func (s Services) Enabled() bool { return len(s.Prefixes) > 0 || s.Pool.IsValid() }

// check says what is wrong with s beside the aggregates.
func (s Services) check(aggregates []lisp.EID) error {
	for i, p := range s.Prefixes {
		if err := CheckServicePrefix(p, aggregates); err != nil {
			return err
		}
		for _, o := range s.Prefixes[:i] {
			if o.Overlaps(p) {
				return fmt.Errorf("service prefixes %v and %v overlap", o, p)
			}
		}
	}
	if s.Pool.IsValid() {
		if err := CheckPool(s.Pool, aggregates, s.Prefixes); err != nil {
			return err
		}
	} else if slices.ContainsFunc(s.Prefixes, func(p netip.Prefix) bool { return p.Addr().Is4() }) {
		return errors.New("service prefixes of IPv4 need a pool")
	}
	if s.Enabled() && len(s.MapServers) == 0 {
		return errors.New("services need Map-Servers, at which xTRs learn where the service prefixes and the pool are")
	}
	return nil
}

// CheckServicePrefix says what is wrong with a service prefix beside the aggregates: it lies inside one of them,
// or outside of all.
func CheckServicePrefix(p netip.Prefix, aggregates []lisp.EID) error {
	switch {
	case !p.IsValid() || p.Addr().Is4In6():
		return fmt.Errorf("service prefix %v is not valid", p)
	case p != p.Masked():
		return fmt.Errorf("service prefix %v has bits set beyond its length, want %v", p, p.Masked())
	case p.Bits() == 0:
		return fmt.Errorf("service prefix %v covers all addresses", p)
	}
	for _, a := range aggregates {
		if a.IID == 0 && a.Prefix.Overlaps(p) && a.Prefix.Bits() >= p.Bits() {
			return fmt.Errorf("service prefix %v covers the aggregate %v: VMs would have service addresses", p, a)
		}
	}
	return nil
}

// poolLengths are those that RFC 6052 section 2.2 has.
var poolLengths = []int{32, 40, 48, 56, 64, 96}

// CheckPool says what is wrong with a pool prefix (RFC 6052) beside the aggregates and the service prefixes.
func CheckPool(p netip.Prefix, aggregates []lisp.EID, services []netip.Prefix) error {
	switch {
	case !p.IsValid() || !p.Addr().Is6() || p.Addr().Is4In6():
		return fmt.Errorf("pool %v is not an IPv6 prefix", p)
	case p != p.Masked():
		return fmt.Errorf("pool %v has bits set beyond its length, want %v", p, p.Masked())
	case !slices.Contains(poolLengths, p.Bits()):
		return fmt.Errorf("pool %v: RFC 6052 has prefixes of the lengths %v only", p, poolLengths)
	case p.Addr().As16()[8] != 0:
		return fmt.Errorf("pool %v: bits 64 to 71 must be zero (RFC 6052 section 2.2)", p)
	}
	for _, a := range aggregates {
		if a.Prefix.Overlaps(p) {
			return fmt.Errorf("pool %v overlaps the aggregate %v: it must be of addresses that no VM has", p, a)
		}
	}
	for _, s := range services {
		if s.Overlaps(p) {
			return fmt.Errorf("pool %v overlaps the service prefix %v", p, s)
		}
	}
	return nil
}
