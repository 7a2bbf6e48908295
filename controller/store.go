package controller

import "slices"

// Store keeps what must outlive the controller. One goroutine calls it.
type Store interface {
	// Load returns everything that was saved.
	Load() (Saved, error)
	// Save makes b durable, whole or, with an error, not at all, before it returns.
	Save(b Batch) error
	Close() error
}

// Saved is what a Store holds. The order of the slices means nothing.
type Saved struct {
	Sites       []Site
	Hypervisors []Hypervisor
	VMs         []VM
	Moves       []Move
	Migrations  []MigrationRecord
	Links       []LinkMemory
	Services    []Service
	Nonce       uint64 // no Map-Register was sent with this nonce or a higher one
}

// Batch is a set of changes that are saved together. Putting what exists replaces it; deleting what
// does not exist is no error. A name is not in both a Put and a Del.
type Batch struct {
	PutSites       []Site
	PutHypervisors []Hypervisor
	PutVMs         []VM
	PutMoves       []Move
	PutMigrations  []MigrationRecord
	PutLinks       []LinkMemory
	PutServices    []Service
	DelSites       []string
	DelHypervisors []string
	DelVMs         []string
	DelMoves       []string
	DelMigrations  []string
	DelServices    []string // by Outside
	Nonce          uint64   // 0 = unchanged
}

// Empty reports whether b changes nothing.
func (b *Batch) Empty() bool {
	return len(b.PutSites)+len(b.PutHypervisors)+len(b.PutVMs)+len(b.PutMoves)+
		len(b.PutMigrations)+len(b.PutLinks)+len(b.DelMigrations)+
		len(b.PutServices)+len(b.DelServices)+
		len(b.DelSites)+len(b.DelHypervisors)+len(b.DelVMs)+len(b.DelMoves) == 0 && b.Nonce == 0
}

// change puts v into put in the place of its older self, and takes name out of del.
func change[V any](put *[]V, del *[]string, name string, v V, nameOf func(V) string) {
	*del = slices.DeleteFunc(*del, func(n string) bool { return n == name })
	if i := slices.IndexFunc(*put, func(o V) bool { return nameOf(o) == name }); i >= 0 {
		(*put)[i] = v
		return
	}
	*put = append(*put, v)
}

// remove takes name out of put and into del.
func remove[V any](put *[]V, del *[]string, name string, nameOf func(V) string) {
	*put = slices.DeleteFunc(*put, func(o V) bool { return nameOf(o) == name })
	if !slices.Contains(*del, name) {
		*del = append(*del, name)
	}
}

func siteName(s Site) string         { return s.Name }
func hvName(h Hypervisor) string     { return h.Name }
func vmName(v VM) string             { return v.Name }
func moveID(m Move) string           { return m.ID }
func migID(m MigrationRecord) string { return m.ID }
func linkName(l LinkMemory) string   { return l.Link }

func (b *Batch) putSite(s Site)     { change(&b.PutSites, &b.DelSites, s.Name, s, siteName) }
func (b *Batch) delSite(n string)   { remove(&b.PutSites, &b.DelSites, n, siteName) }
func (b *Batch) putHV(h Hypervisor) { change(&b.PutHypervisors, &b.DelHypervisors, h.Name, h, hvName) }
func (b *Batch) delHV(n string)     { remove(&b.PutHypervisors, &b.DelHypervisors, n, hvName) }
func (b *Batch) putVM(v VM)         { change(&b.PutVMs, &b.DelVMs, v.Name, v, vmName) }
func (b *Batch) delVM(n string)     { remove(&b.PutVMs, &b.DelVMs, n, vmName) }
func (b *Batch) putMove(m Move)     { change(&b.PutMoves, &b.DelMoves, m.ID, m, moveID) }
func (b *Batch) delMove(n string)   { remove(&b.PutMoves, &b.DelMoves, n, moveID) }

func (b *Batch) putMigration(m MigrationRecord) {
	change(&b.PutMigrations, &b.DelMigrations, m.ID, m, migID)
}
func (b *Batch) delMigration(n string) { remove(&b.PutMigrations, &b.DelMigrations, n, migID) }
func (b *Batch) putLink(l LinkMemory)  { change(&b.PutLinks, new([]string), l.Link, l, linkName) }
