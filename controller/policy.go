package controller

import (
	"fmt"
	"path"
	"slices"
	"strings"
)

// Lend is what a site lends to VMs that are not at home there. See the package's documentation, "Policy".
type Lend struct {
	// CPUs and Memory (bytes) bound what all guests together may have; 0 = only what the hypervisors have.
	CPUs   int    `json:"cpus,omitempty"`
	Memory uint64 `json:"memory,omitempty"`
	// Owners whose VMs may come; "*" = everybody's that has an owner. Empty = nobody's.
	Owners []string `json:"owners,omitempty"`
	// VMs that may come whoever owns them, by name or pattern ("web-*"). Empty = none.
	VMs []string `json:"vms,omitempty"`
	// FromSites are the sites that guests may come from; empty = any.
	FromSites []string `json:"from_sites,omitempty"`
}

// clone shares nothing with l.
func (l *Lend) clone() *Lend {
	if l == nil {
		return nil
	}
	out := *l
	out.Owners, out.VMs, out.FromSites = slices.Clone(l.Owners), slices.Clone(l.VMs), slices.Clone(l.FromSites)
	return &out
}

// open reports whether the site has no policy.
func (s Site) open() bool { return s.Lend == nil && len(s.Owners) == 0 }

// home reports whether v belongs to somebody of s.
func (s Site) home(v VM) bool { return v.Owner != "" && slices.Contains(s.Owners, v.Owner) }

// admits says why v, which is at the site from, may not come to s; "" = it may. Capacity is another matter.
func (s Site) admits(v VM, from string) string {
	switch {
	case s.Name == from || s.open() || s.home(v):
		return ""
	case s.Lend == nil:
		return fmt.Sprintf("site %s lends nothing", s.Name)
	case len(s.Lend.FromSites) > 0 && !slices.Contains(s.Lend.FromSites, from):
		return fmt.Sprintf("site %s takes no VMs from site %s", s.Name, or(from, "unknown"))
	}
	for _, p := range s.Lend.VMs {
		if ok, _ := path.Match(p, v.Name); ok { // a bad pattern was refused when it came
			return ""
		}
	}
	switch {
	case v.Owner == "":
		return fmt.Sprintf("site %s lends to named owners, and VM %s has none (tabi vm chown)", s.Name, v.Name)
	case slices.Contains(s.Lend.Owners, v.Owner), slices.Contains(s.Lend.Owners, "*"):
		return ""
	}
	return fmt.Sprintf("site %s lends nothing to %s", s.Name, v.Owner)
}

// check validates what came from a caller.
func (l *Lend) check() error {
	if l == nil {
		return nil
	}
	if l.CPUs < 0 {
		return fmt.Errorf("lend: cpus is %d", l.CPUs)
	}
	for _, o := range l.Owners {
		if o != "*" {
			if err := checkName("lend: owner", o); err != nil {
				return err
			}
		}
	}
	for _, p := range l.VMs {
		if _, err := path.Match(p, "x"); err != nil || p == "" {
			return fmt.Errorf("lend: vms: %q is no pattern such as web-*", p)
		}
	}
	for _, s := range l.FromSites {
		if err := checkName("lend: from_sites", s); err != nil {
			return err
		}
	}
	return nil
}

// pool returns the shared file system that a path is on at s: its name, or "" for a local path. A pool without a name
// is s's own.
func (s Site) pool(file string) string {
	best, length := "", -1
	for _, p := range s.SharedStorage {
		name, dir := cutPool(p)
		if dir = strings.TrimSuffix(dir, "/"); (file == dir || strings.HasPrefix(file, dir+"/")) && len(dir) > length {
			best, length = or(name, "@"+s.Name), len(dir)
		}
	}
	return best
}

// cutPool takes "NAME=/PATH" or "/PATH" apart.
func cutPool(s string) (name, dir string) {
	if name, dir, ok := strings.Cut(s, "="); ok && !strings.HasPrefix(s, "/") {
		return name, dir
	}
	return "", s
}

func checkPool(s string) error {
	name, dir := cutPool(s)
	if name != "" {
		if err := checkName("shared_storage", name); err != nil {
			return err
		}
	}
	if !path.IsAbs(dir) || path.Clean(dir) != dir {
		return fmt.Errorf("shared_storage %q: want an absolute path, with the name of the file system before it if other sites have it too: nfs1=/srv/vms", s)
	}
	return nil
}
