package boltstore

import (
	"bytes"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"go.etcd.io/bbolt"

	"github.com/tabi-lisp/tabi/lisp"
	"github.com/tabi-lisp/tabi/mapserver"
)

func eid(t testing.TB, s string) lisp.EID {
	t.Helper()
	e, err := lisp.ParseEID(s)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func sample(t testing.TB) (mapserver.Batch, mapserver.State) {
	t.Helper()
	x, y := lisp.XTRID{15: 1}, lisp.XTRID{0: 0xff, 15: 2}
	ls := []lisp.Locator{
		{RLOC: netip.MustParseAddr("100.64.1.2"), Priority: 1, Weight: 50, MPriority: 255, MWeight: 3, Reachable: true},
		{RLOC: netip.MustParseAddr("2001:db8:100:1::2"), Priority: 255, LCAF: ""},
		{LCAF: lisp.RawLCAF("\x40\x03\x00\x00\x05\x00\x00\x04\xff\xfe\x00\x80"), Priority: 2},
	}
	regs := []mapserver.Registration{
		{Mapping: lisp.Mapping{EID: eid(t, "198.51.100.10"), TTL: 1440, Version: 4095, Locators: ls, XTRID: x, SiteID: 1 << 63},
			Site: "nezu", Since: time.Unix(1700000000, 123456789).UTC(),
			Registrants: []mapserver.Registrant{
				{XTRID: x, SiteID: 1 << 63, Source: ls[0].RLOC, KeyID: 7, ProxyReply: true, UseTTL: true, Merge: true, TTL: 1440, Locators: ls[:2]},
				{XTRID: y, KeyID: 9, OnBehalf: true, TTL: 5, Locators: ls[2:]},
			}},
		{Mapping: lisp.Mapping{EID: eid(t, "[7]2001:db8:e1d::/48"), Version: 3, Action: lisp.ActDropPolicyDenied, XTRID: y},
			Site: "a \"quoted\" näme", Since: time.Unix(1, 0).UTC()},
	}
	nonces := map[mapserver.NonceKey]uint64{
		{Site: "nezu", XTRID: x, KeyID: 7}:                                         1<<64 - 1,
		{Site: "nezu", XTRID: x, KeyID: 9}:                                         0,
		{Site: "", Source: netip.MustParseAddr("192.0.2.1"), KeyID: 1}:             5,
		{Site: "nezu", Source: netip.MustParseAddr("2001:db8:100:1::2"), KeyID: 1}: 6,
	}
	subs := []mapserver.Subscription{
		{SubscriptionKey: mapserver.SubscriptionKey{EID: eid(t, "198.51.100.0/24"), XTRID: y}, SiteID: 3,
			RLOCs: []netip.Addr{ls[0].RLOC, ls[1].RLOC}, Requested: 1<<64 - 2, Reserved: 1<<64 - 1,
			Except: []lisp.EID{eid(t, "198.51.100.7")}},
		{SubscriptionKey: mapserver.SubscriptionKey{EID: eid(t, "198.51.100.0/24"), XTRID: x}, Removed: true,
			Expires: time.Unix(1800000000, 1).UTC()},
	}
	controller := netip.MustParseAddr("100.64.9.2")
	services := []mapserver.Service{
		{Mapping: lisp.NewService(netip.MustParsePrefix("198.51.100.10/32"), netip.MustParsePrefix("2001:db8:e1d::a/128"), 4095),
			Site: "nezu", Source: controller, KeyID: 9, Since: time.Unix(1700000000, 5).UTC()},
		{Mapping: lisp.NewService(netip.MustParsePrefix("2001:db8:5e::/48"), netip.MustParsePrefix("2001:db8:e1d::/48"), 1),
			Site: "a \"quoted\" näme", KeyID: 255, Since: time.Unix(1, 0).UTC()},
	}
	services[1].Mapping.TTL = lisp.TTLDelete
	b := mapserver.Batch{Registrations: map[lisp.EID]*mapserver.Registration{}, Nonces: nonces, Services: map[lisp.EID]*mapserver.Service{},
		Subscriptions: map[mapserver.SubscriptionKey]*mapserver.Subscription{}}
	for i := range regs {
		b.Registrations[regs[i].Mapping.EID] = &regs[i]
	}
	for i := range services {
		b.Services[services[i].Mapping.EID] = &services[i]
	}
	for i := range subs {
		b.Subscriptions[subs[i].SubscriptionKey] = &subs[i]
	}
	return b, mapserver.State{Registrations: regs, Services: services, Nonces: nonces, Subscriptions: subs}
}

var compare = cmp.Options{
	cmpopts.EquateEmpty(), cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{}, lisp.EID{}, lisp.Locator{}),
	cmpopts.SortSlices(func(a, b mapserver.Registration) bool { return a.Mapping.EID.Compare(b.Mapping.EID) < 0 }),
	cmpopts.SortSlices(func(a, b mapserver.Service) bool { return a.Mapping.EID.Compare(b.Mapping.EID) < 0 }),
	cmpopts.SortSlices(func(a, b mapserver.Subscription) bool { return a.XTRID.Compare(b.XTRID) < 0 }),
}

func open(t *testing.T, path string) *Store {
	t.Helper()
	s, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func load(t *testing.T, s *Store) mapserver.State {
	t.Helper()
	st, err := s.Load()
	if err != nil {
		t.Fatal(err)
	}
	return st
}

func TestWhatIsSavedIsThereAfterReopening(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ms.db")
	s := open(t, path)
	if st := load(t, s); len(st.Registrations)+len(st.Services)+len(st.Nonces)+len(st.Subscriptions) != 0 {
		t.Fatalf("a new file holds %+v", st)
	}
	b, want := sample(t)
	if err := s.Save(b); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, path)
	if diff := cmp.Diff(want, load(t, s), compare); diff != "" {
		t.Errorf("loaded (-want +got):\n%s", diff)
	}

	// Replaced and removed.
	changed := *b.Registrations[eid(t, "198.51.100.10")]
	changed.Mapping.Version = 1
	service := *b.Services[eid(t, "198.51.100.10")]
	service.Mapping.Inside = netip.MustParsePrefix("2001:db8:e1d::b/128")
	b2 := mapserver.Batch{
		// A registration and a service may have the same key.
		Services: map[lisp.EID]*mapserver.Service{service.Mapping.EID: &service, eid(t, "2001:db8:5e::/48"): nil,
			eid(t, "203.0.113.0/24"): nil},
		Registrations: map[lisp.EID]*mapserver.Registration{
			changed.Mapping.EID: &changed, eid(t, "[7]2001:db8:e1d::/48"): nil, eid(t, "203.0.113.0/24"): nil},
		Subscriptions: map[mapserver.SubscriptionKey]*mapserver.Subscription{want.Subscriptions[0].SubscriptionKey: nil},
	}
	if err := s.Save(b2); err != nil {
		t.Fatal(err)
	}
	want.Registrations = []mapserver.Registration{changed}
	want.Services = []mapserver.Service{service}
	want.Subscriptions = want.Subscriptions[1:]
	if diff := cmp.Diff(want, load(t, s), compare); diff != "" {
		t.Errorf("after a change (-want +got):\n%s", diff)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

// A file that was written before there were services is opened, and has none.
func TestAFileFromBeforeServices(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ms.db")
	s := open(t, path)
	b, want := sample(t)
	if err := s.Save(b); err != nil {
		t.Fatal(err)
	}
	if err := s.db.Update(func(tx *bbolt.Tx) error { return tx.DeleteBucket(bucketServices) }); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, path)
	want.Services = nil
	if diff := cmp.Diff(want, load(t, s), compare); diff != "" {
		t.Errorf("loaded (-want +got):\n%s", diff)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestAFileInUseIsNotOpened(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ms.db")
	s := open(t, path)
	defer s.Close()
	if _, err := Open(path); err == nil || !strings.Contains(err.Error(), "in use") {
		t.Fatalf("second Open: %v", err)
	}
}

func TestAnotherFormatIsNotTouched(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ms.db")
	s := open(t, path)
	if err := s.db.Update(func(tx *bbolt.Tx) error {
		return tx.Bucket(bucketMeta).Put(keyFormat, []byte("2"))
	}); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(path); err == nil || !strings.Contains(err.Error(), `format "2"`) {
		t.Fatalf("Open: %v", err)
	}
}

func TestABrokenRecordIsNamed(t *testing.T) {
	for _, c := range []struct {
		bucket     []byte
		key, value string
		want       string
	}{
		{bucketRegistrations, "198.51.100.10/32", "{", `registration "198.51.100.10/32"`},
		{bucketRegistrations, "198.51.100.10/32", "{}", "no valid EID"},
		{bucketRegistrations, "198.51.100.10/32", `{"eid":"198.51.100.11/32","xtr_id":"` + strings.Repeat("0", 32) + `"}`, "is of 198.51.100.11/32"},
		{bucketServices, "198.51.100.10/32", "{", `service "198.51.100.10/32"`},
		{bucketServices, "198.51.100.10/32", "{}", "no masked prefix"},
		{bucketServices, "198.51.100.10/32", `{"outside":"198.51.100.10/32","inside":"2001:db8::/64"}`, "host bits"},
		{bucketServices, "198.51.100.10/32", `{"outside":"198.51.100.11/32","inside":"2001:db8::1/128"}`, "is of 198.51.100.11/32"},
		{bucketServices, "198.51.100.10/32", `{"outside":"198.51.100.10/32","inside":"2001:db8::1/128","version":4096}`, "valid version"},
		{bucketNonces, "short", "12345678", "cut short"},
		{bucketSubscriptions, "k", "[]", "subscription 6b"},
	} {
		s := open(t, filepath.Join(t.TempDir(), "ms.db"))
		if err := s.db.Update(func(tx *bbolt.Tx) error {
			return tx.Bucket(c.bucket).Put([]byte(c.key), []byte(c.value))
		}); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Load(); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("Load with %s %q=%q: %v, want %q", c.bucket, c.key, c.value, err, c.want)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestAFileThatIsNoDatabase(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ms.db")
	if err := os.WriteFile(path, bytes.Repeat([]byte("no database\n"), 4096), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(path); err == nil || !strings.Contains(err.Error(), path) {
		t.Fatalf("Open: %v", err)
	}
}

func FuzzDecodeRegistration(f *testing.F) {
	b, _ := sample(f)
	for _, r := range b.Registrations {
		v, err := encodeRegistration(r)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(v)
	}
	f.Fuzz(func(t *testing.T, v []byte) {
		r, err := decodeRegistration(v)
		if err != nil {
			return
		}
		again, err := encodeRegistration(&r)
		if err != nil {
			return // a time that JSON cannot carry
		}
		r2, err := decodeRegistration(again)
		if err != nil {
			t.Fatalf("%s: %v", again, err)
		}
		if diff := cmp.Diff(r, r2, compare); diff != "" {
			t.Fatal(diff)
		}
	})
}

func FuzzDecodeService(f *testing.F) {
	b, _ := sample(f)
	for _, s := range b.Services {
		v, err := encodeService(s)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(v)
	}
	f.Fuzz(func(t *testing.T, v []byte) {
		s, err := decodeService(v)
		if err != nil {
			return
		}
		if err := lisp.CheckService(s.Mapping.EID, s.Mapping.Inside); err != nil {
			t.Fatal(err)
		}
		again, err := encodeService(&s)
		if err != nil {
			return // a time that JSON cannot carry
		}
		s2, err := decodeService(again)
		if err != nil {
			t.Fatalf("%s: %v", again, err)
		}
		if diff := cmp.Diff(s, s2, compare); diff != "" {
			t.Fatal(diff)
		}
	})
}

func FuzzDecodeSubscription(f *testing.F) {
	b, _ := sample(f)
	for _, s := range b.Subscriptions {
		v, err := encodeSubscription(s)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(v)
	}
	f.Fuzz(func(t *testing.T, v []byte) {
		s, err := decodeSubscription(v)
		if err != nil {
			return
		}
		again, err := encodeSubscription(&s)
		if err != nil {
			return
		}
		s2, err := decodeSubscription(again)
		if err != nil {
			t.Fatalf("%s: %v", again, err)
		}
		if diff := cmp.Diff(s, s2, compare); diff != "" {
			t.Fatal(diff)
		}
	})
}

func FuzzDecodeNonce(f *testing.F) {
	b, _ := sample(f)
	for k, n := range b.Nonces {
		f.Add(nonceKey(k), nonceValue(n))
	}
	f.Fuzz(func(t *testing.T, key, value []byte) {
		k, n, err := decodeNonce(key, value)
		if err != nil {
			return
		}
		if !bytes.Equal(nonceKey(k), key) || !bytes.Equal(nonceValue(n), value) {
			t.Fatalf("%x=%x became %+v=%d", key, value, k, n)
		}
	})
}

// BenchmarkSave measures what one Map-Register costs when it comes alone, and when many share a
// transaction.
func BenchmarkSave(b *testing.B) {
	for _, n := range []int{1, 100} {
		b.Run(map[int]string{1: "single", 100: "batch-of-100"}[n], func(b *testing.B) {
			s, err := Open(filepath.Join(b.TempDir(), "ms.db"))
			if err != nil {
				b.Fatal(err)
			}
			defer s.Close()
			batch, _ := sample(b)
			r := *batch.Registrations[eid(b, "198.51.100.10")]
			fill := func(first, n int) mapserver.Batch {
				m := mapserver.Batch{Registrations: map[lisp.EID]*mapserver.Registration{}}
				for i := range n {
					one := r
					j := (first + i) % 100000
					one.Mapping.EID = lisp.HostEID(0, netip.AddrFrom4([4]byte{10, byte(j >> 16), byte(j >> 8), byte(j)}))
					m.Registrations[one.Mapping.EID] = &one
				}
				return m
			}
			if err := s.Save(fill(0, 100000)); err != nil {
				b.Fatal(err)
			}
			i := 0
			for b.Loop() {
				i += 7919
				if err := s.Save(fill(i, n)); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
