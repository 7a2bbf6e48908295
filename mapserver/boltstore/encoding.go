package boltstore

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"net/netip"
	"time"

	"github.com/tabi-lisp/tabi/lisp"
	"github.com/tabi-lisp/tabi/mapserver"
)

// The forms in the file. They are apart from the types of the other packages, so that a change of those
// does not silently change what is stored.
type (
	registrationV1 struct {
		EID         lisp.EID       `json:"eid"`
		TTL         uint32         `json:"ttl"`
		Version     uint16         `json:"version"`
		Action      uint8          `json:"action,omitempty"`
		Locators    []locatorV1    `json:"locators,omitempty"`
		XTRID       lisp.XTRID     `json:"xtr_id"`
		SiteID      uint64         `json:"site_id,omitempty"`
		Site        string         `json:"site"`
		Since       time.Time      `json:"since"`
		Registrants []registrantV1 `json:"registrants,omitempty"`
	}
	registrantV1 struct {
		XTRID      lisp.XTRID  `json:"xtr_id"`
		SiteID     uint64      `json:"site_id,omitempty"`
		Source     netip.Addr  `json:"source,omitzero"`
		KeyID      uint8       `json:"key_id"`
		OnBehalf   bool        `json:"on_behalf,omitempty"`
		ProxyReply bool        `json:"proxy_reply,omitempty"`
		UseTTL     bool        `json:"use_ttl,omitempty"`
		Merge      bool        `json:"merge,omitempty"`
		TTL        uint32      `json:"ttl"`
		Action     uint8       `json:"action,omitempty"`
		Locators   []locatorV1 `json:"locators,omitempty"`
	}
	locatorV1 struct {
		RLOC      netip.Addr `json:"rloc,omitzero"`
		Priority  uint8      `json:"p"`
		Weight    uint8      `json:"w"`
		MPriority uint8      `json:"mp,omitempty"`
		MWeight   uint8      `json:"mw,omitempty"`
		Reachable bool       `json:"r,omitempty"`
		LCAF      []byte     `json:"lcaf,omitempty"`
	}
	serviceV1 struct {
		Outside lisp.EID     `json:"outside"`
		Inside  netip.Prefix `json:"inside"`
		TTL     uint32       `json:"ttl"`
		Version uint16       `json:"version"`
		Site    string       `json:"site"`
		Source  netip.Addr   `json:"source,omitzero"`
		KeyID   uint8        `json:"key_id"`
		Since   time.Time    `json:"since"`
	}
	subscriptionV1 struct {
		EID       lisp.EID     `json:"eid"`
		XTRID     lisp.XTRID   `json:"xtr_id"`
		SiteID    uint64       `json:"site_id,omitempty"`
		RLOCs     []netip.Addr `json:"itr_rlocs,omitempty"`
		Requested uint64       `json:"requested"`
		Reserved  uint64       `json:"reserved"`
		Removed   bool         `json:"removed,omitempty"`
		Expires   time.Time    `json:"expires,omitzero"`
		Except    []lisp.EID   `json:"except,omitempty"`
	}
)

func locatorsV1(ls []lisp.Locator) []locatorV1 {
	var out []locatorV1
	for _, l := range ls {
		v := locatorV1{RLOC: l.RLOC, Priority: l.Priority, Weight: l.Weight, MPriority: l.MPriority,
			MWeight: l.MWeight, Reachable: l.Reachable}
		if l.LCAF != "" {
			v.LCAF = []byte(l.LCAF)
		}
		out = append(out, v)
	}
	return out
}

func locators(vs []locatorV1) []lisp.Locator {
	var out []lisp.Locator
	for _, v := range vs {
		out = append(out, lisp.Locator{RLOC: v.RLOC, Priority: v.Priority, Weight: v.Weight, MPriority: v.MPriority,
			MWeight: v.MWeight, Reachable: v.Reachable, LCAF: lisp.RawLCAF(v.LCAF)})
	}
	return out
}

func encodeRegistration(r *mapserver.Registration) ([]byte, error) {
	m := r.Mapping
	v := registrationV1{EID: m.EID, TTL: uint32(m.TTL), Version: uint16(m.Version), Action: uint8(m.Action),
		Locators: locatorsV1(m.Locators), XTRID: m.XTRID, SiteID: uint64(m.SiteID), Site: r.Site, Since: r.Since}
	for _, g := range r.Registrants {
		v.Registrants = append(v.Registrants, registrantV1{XTRID: g.XTRID, SiteID: uint64(g.SiteID),
			Source: g.Source, KeyID: g.KeyID, OnBehalf: g.OnBehalf, ProxyReply: g.ProxyReply, UseTTL: g.UseTTL,
			Merge: g.Merge, TTL: uint32(g.TTL), Action: uint8(g.Action), Locators: locatorsV1(g.Locators)})
	}
	return json.Marshal(v)
}

func decodeRegistration(b []byte) (mapserver.Registration, error) {
	var v registrationV1
	if err := json.Unmarshal(b, &v); err != nil {
		return mapserver.Registration{}, err
	}
	if !v.EID.IsValid() || lisp.Version(v.Version) > lisp.VersionMask {
		return mapserver.Registration{}, errors.New("has no valid EID or version")
	}
	r := mapserver.Registration{Site: v.Site, Since: v.Since, Mapping: lisp.Mapping{EID: v.EID, TTL: lisp.TTL(v.TTL),
		Version: lisp.Version(v.Version), Action: lisp.Action(v.Action), Locators: locators(v.Locators),
		XTRID: v.XTRID, SiteID: lisp.SiteID(v.SiteID)}}
	for _, g := range v.Registrants {
		r.Registrants = append(r.Registrants, mapserver.Registrant{XTRID: g.XTRID, SiteID: lisp.SiteID(g.SiteID),
			Source: g.Source, KeyID: g.KeyID, OnBehalf: g.OnBehalf, ProxyReply: g.ProxyReply, UseTTL: g.UseTTL,
			Merge: g.Merge, TTL: lisp.TTL(g.TTL), Action: lisp.Action(g.Action), Locators: locators(g.Locators)})
	}
	return r, nil
}

func encodeService(s *mapserver.Service) ([]byte, error) {
	m := s.Mapping
	return json.Marshal(serviceV1{Outside: m.EID, Inside: m.Inside, TTL: uint32(m.TTL), Version: uint16(m.Version),
		Site: s.Site, Source: s.Source, KeyID: s.KeyID, Since: s.Since})
}

func decodeService(b []byte) (mapserver.Service, error) {
	var v serviceV1
	if err := json.Unmarshal(b, &v); err != nil {
		return mapserver.Service{}, err
	}
	if lisp.Version(v.Version) > lisp.VersionMask {
		return mapserver.Service{}, errors.New("has no valid version")
	}
	if err := lisp.CheckService(v.Outside, v.Inside); err != nil {
		return mapserver.Service{}, err
	}
	return mapserver.Service{Mapping: lisp.Mapping{EID: v.Outside, TTL: lisp.TTL(v.TTL), Version: lisp.Version(v.Version),
		Action: lisp.ActDrop, Inside: v.Inside}, Site: v.Site, Source: v.Source, KeyID: v.KeyID, Since: v.Since}, nil
}

func encodeSubscription(s *mapserver.Subscription) ([]byte, error) {
	return json.Marshal(subscriptionV1{EID: s.EID, XTRID: s.XTRID, SiteID: uint64(s.SiteID), RLOCs: s.RLOCs,
		Requested: s.Requested, Reserved: s.Reserved, Removed: s.Removed, Expires: s.Expires, Except: s.Except})
}

func decodeSubscription(b []byte) (mapserver.Subscription, error) {
	var v subscriptionV1
	if err := json.Unmarshal(b, &v); err != nil {
		return mapserver.Subscription{}, err
	}
	if !v.EID.IsValid() {
		return mapserver.Subscription{}, errors.New("has no valid EID")
	}
	return mapserver.Subscription{SubscriptionKey: mapserver.SubscriptionKey{EID: v.EID, XTRID: v.XTRID},
		SiteID: lisp.SiteID(v.SiteID), RLOCs: v.RLOCs, Requested: v.Requested, Reserved: v.Reserved,
		Removed: v.Removed, Expires: v.Expires, Except: v.Except}, nil
}

// nonceKey is xTR-ID (16 bytes), key ID, length of the address (0, 4 or 16), address, name of the site.
func nonceKey(k mapserver.NonceKey) []byte {
	source := k.Source.AsSlice()
	b := append(k.XTRID[:], k.KeyID, byte(len(source)))
	return append(append(b, source...), k.Site...)
}

func nonceValue(n uint64) []byte { return binary.BigEndian.AppendUint64(nil, n) }

func decodeNonce(key, value []byte) (mapserver.NonceKey, uint64, error) {
	var k mapserver.NonceKey
	head := len(k.XTRID) + 2
	if len(key) < head || len(value) != 8 {
		return k, 0, errors.New("is cut short")
	}
	copy(k.XTRID[:], key)
	k.KeyID = key[head-2]
	n := int(key[head-1])
	rest := key[head:]
	if len(rest) < n {
		return k, 0, errors.New("is cut short")
	}
	if n > 0 {
		a, ok := netip.AddrFromSlice(rest[:n])
		if !ok {
			return k, 0, errors.New("has an address of a strange length")
		}
		k.Source = a
	}
	k.Site = string(rest[n:])
	return k, binary.BigEndian.Uint64(value), nil
}
