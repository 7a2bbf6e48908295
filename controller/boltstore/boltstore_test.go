package boltstore

import (
	"cmp"
	"encoding/binary"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	bolt "go.etcd.io/bbolt"

	"github.com/tabi-lisp/tabi/controller"
	"github.com/tabi-lisp/tabi/lisp"
)

func open(t *testing.T, path string) *Store {
	t.Helper()
	s, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

var same = gocmp.Options{
	cmpopts.IgnoreUnexported(controller.Move{}, controller.Side{}, controller.MigrationRecord{}),
	gocmp.Comparer(func(a, b netip.Addr) bool { return a == b }),
	gocmp.Comparer(func(a, b netip.Prefix) bool { return a == b }),
	gocmp.Comparer(func(a, b lisp.EID) bool { return a == b }),
}

func loaded(t *testing.T, s *Store) controller.Saved {
	t.Helper()
	got, err := s.Load()
	if err != nil {
		t.Fatal(err)
	}
	slices.SortFunc(got.Moves, func(a, b controller.Move) int { return cmp.Compare(a.Seq, b.Seq) })
	return got
}

func sample() controller.Batch {
	e := lisp.HostEID(7, netip.MustParseAddr("2001:db8::1"))
	at := time.Date(2026, 1, 2, 3, 4, 5, 678901234, time.UTC)
	rloc := netip.MustParseAddr("192.0.2.1")
	return controller.Batch{
		PutSites: []controller.Site{{Name: "a", Description: "A"}, {Name: "b"}},
		PutHypervisors: []controller.Hypervisor{{Name: "h", Site: "a", RLOC: rloc, XTRID: lisp.XTRID{1: 2}, SiteID: 3, Agent: "http://h", Token: "t",
			Locators: []controller.Locator{{RLOC: rloc, Priority: 1, Weight: 50}}}},
		PutVMs: []controller.VM{{Name: "v", Hypervisor: "h", MACs: []string{"52:54:00:00:00:01"}, EIDs: []lisp.EID{e}, Version: 4, Placed: at}},
		PutMoves: []controller.Move{
			{Record: controller.Record{ID: "m1", VM: "v", EIDs: []lisp.EID{e}, State: controller.Pushed, Version: 5, Times: controller.Times{Run: at},
				Dropped: map[string]uint64{"hold full": 3}, MapServers: []controller.ServerResult{{Server: rloc, Accepted: at, Version: 5}},
				Source: &controller.AgentRecord{ID: "m1", Times: controller.AgentTimes{Paused: at}}},
				Seq: 1, Versions: map[lisp.EID]lisp.Version{e: 5}, Confirmed: map[netip.Addr][]lisp.EID{rloc: {e}}, Open: true,
				Tgt: controller.Side{Hypervisor: "h", Told: controller.VerbCommit, ToldAt: at}},
			{Record: controller.Record{ID: "m2", VM: "v"}, Seq: 2},
		},
		PutMigrations: []controller.MigrationRecord{{MigrationStatus: controller.MigrationStatus{ID: "g1", VM: "v", Phase: controller.MigrationMigrating, Seq: 7,
			Request: controller.MigrationRequest{VM: "v", Timeout: controller.Duration(time.Minute), OnSlow: controller.SlowWait},
			Notes:   []controller.Note{{At: at, Text: "n"}}, Progress: controller.Progress{Total: 5, Elapsed: time.Second}},
			Order: 3, Guest: "dom", Slow: controller.Slow{Least: 4, SentAt: at}}},
		PutLinks: []controller.LinkMemory{{Link: "a-b", Bandwidth: 1 << 20, Count: 2, At: at}},
		PutServices: []controller.Service{
			{Outside: netip.MustParsePrefix("198.51.100.10/32"), Inside: netip.MustParsePrefix("2001:db8::1/128"), VM: "v", Version: 4095, Created: at, Changed: at,
				MapServers: []controller.ServiceAt{{Server: rloc, Version: 4095, At: at}, {Server: netip.MustParseAddr("2001:db8::7"), Error: "e"}}},
			{Outside: netip.MustParsePrefix("2001:db8:5::/64"), Inside: netip.Prefix{}, Version: 2, Deleted: true},
		},
		Nonce: 1 << 63,
	}
}

func TestKeepsEverything(t *testing.T) {
	path := filepath.Join(t.TempDir(), "c.db")
	s := open(t, path)
	if d := gocmp.Diff(controller.Saved{}, loaded(t, s), same); d != "" {
		t.Errorf("a new file: %s", d)
	}
	b := sample()
	want := controller.Saved{Sites: b.PutSites, Hypervisors: b.PutHypervisors, VMs: b.PutVMs, Moves: b.PutMoves,
		Migrations: b.PutMigrations, Links: b.PutLinks, Services: b.PutServices, Nonce: b.Nonce}
	for range 2 { // saving twice is saving once
		if err := s.Save(b); err != nil {
			t.Fatal(err)
		}
		if d := gocmp.Diff(want, loaded(t, s), same); d != "" {
			t.Errorf("after Save: %s", d)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, path)
	if d := gocmp.Diff(want, loaded(t, s), same); d != "" {
		t.Errorf("after a restart: %s", d)
	}
	b.PutMoves[1].Error = "changed"
	err := s.Save(controller.Batch{
		PutMoves: b.PutMoves[1:2], DelMoves: []string{"m1", "never was"}, DelSites: []string{"b"}, DelVMs: []string{"v"}, DelHypervisors: []string{"h"}, DelMigrations: []string{"g1"},
		DelServices: []string{"198.51.100.10/32", "192.0.2.1/32"},
	})
	if err != nil {
		t.Fatal(err)
	}
	want = controller.Saved{Sites: b.PutSites[:1], Moves: b.PutMoves[1:2], Links: b.PutLinks, Services: b.PutServices[1:], Nonce: b.Nonce}
	if d := gocmp.Diff(want, loaded(t, s), same); d != "" {
		t.Errorf("after deletions: %s", d)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

// A batch that cannot be saved whole is not saved at all.
func TestSaveIsWhole(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "c.db"))
	defer s.Close()
	b := sample()
	b.PutMoves = append(b.PutMoves, controller.Move{}) // bbolt refuses an empty key
	if err := s.Save(b); err == nil || !strings.HasPrefix(err.Error(), "boltstore: save: moves") {
		t.Errorf("%v", err)
	}
	if d := gocmp.Diff(controller.Saved{}, loaded(t, s), same); d != "" {
		t.Errorf("half of it was saved: %s", d)
	}
}

func TestOpenErrors(t *testing.T) {
	path := filepath.Join(t.TempDir(), "c.db")
	s := open(t, path)
	if _, err := Open(path); err == nil || !strings.Contains(err.Error(), "another process") {
		t.Errorf("open twice: %v", err)
	}
	if err := s.db.Update(func(tx *bolt.Tx) error {
		return tx.Bucket(bucketMeta).Put(keyFormat, binary.BigEndian.AppendUint64(nil, 2))
	}); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(path); err == nil || !strings.Contains(err.Error(), "format 2") {
		t.Errorf("a newer format: %v", err)
	}
	if err := os.WriteFile(path, []byte(strings.Repeat("no database ", 1000)), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(path); err == nil || !strings.HasPrefix(err.Error(), "boltstore: open ") {
		t.Errorf("no database: %v", err)
	}
}

func TestDamagedValue(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "c.db"))
	defer s.Close()
	if err := s.db.Update(func(tx *bolt.Tx) error { return tx.Bucket(bucketVMs).Put([]byte("v"), []byte("{")) }); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Load(); err == nil || !strings.Contains(err.Error(), `vms "v"`) {
		t.Errorf("%v", err)
	}
}
