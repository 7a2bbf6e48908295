package mapserver

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/tabi-lisp/tabi/lisp"
)

const (
	hv1, hv2, hv3 = "100.64.1.2", "100.64.2.2", "2001:db8:100:3::2"
	ctl           = "100.64.9.2"
	web           = "198.51.100.10/32"
)

func TestAClaimIsStoredAndToldInOrder(t *testing.T) {
	r := newRig(t, cloud())
	r.register(xtr{id: 1, addr: hv1}, web)
	r.want("answer", r.late, "100.64.1.2:4342 Map-Notify "+web+" v1 ttl 10 100.64.1.2 of 1")
	r.want("told to others", r.early)

	r.handle(r.message(xtr{id: 2, addr: hv2, version: 2}, web))
	// The version is the claimant's own: all but the claimant hear of it while the disk still works.
	r.want("told at once", r.early, "100.64.1.2:4342 Map-Notify "+web+" v2 ttl 10 100.64.2.2 of 2")
	if len(r.put) != 1 || r.put[0] != mustEID(web) {
		t.Errorf("sinks are told of %v", r.put)
	}
	r.want("answer, once it is durable", r.late, "100.64.2.2:4342 Map-Notify "+web+" v2 ttl 10 100.64.2.2 of 2")
	if got := r.batch.Registrations[mustEID(web)]; got == nil || got.Mapping.Version != 2 || len(got.Registrants) != 1 {
		t.Errorf("to be stored: %+v", got)
	}
	if n := r.batch.Nonces[NonceKey{Site: "cloud", XTRID: lisp.XTRID{15: 2}, KeyID: 1}]; n != r.nonce {
		t.Errorf("nonce %d is to be stored, want %d", n, r.nonce)
	}
}

func TestANumberOfOurOwnWaitsForTheDisk(t *testing.T) {
	r := newRig(t, cloud())
	r.register(xtr{id: 1, addr: hv1}, web)
	r.handle(r.message(xtr{id: 2, addr: hv2}, web))
	r.want("before the commit", r.early)
	if len(r.put) != 0 {
		t.Errorf("sinks are told of %v before the commit", r.put)
	}
	r.wantMapping(web, "v2 of 2 at 100.64.2.2")
	r.commit()
	r.want("after the commit", r.early, "100.64.1.2:4342 Map-Notify "+web+" v2 ttl 10 100.64.2.2 of 2")
	if len(r.put) != 1 {
		t.Errorf("sinks are told of %v", r.put)
	}
}

func TestAnotherClaimBeforeTheCommit(t *testing.T) {
	r := newRig(t, cloud())
	r.register(xtr{id: 1, addr: hv1}, web)
	r.handle(r.message(xtr{id: 2, addr: hv2}, web)) // our number 2, waits in this batch
	first := r.batch
	r.handle(r.message(xtr{id: 3, addr: hv3}, web)) // our number 3, waits in the next
	second := r.batch
	r.c.committed(r.now, first)
	r.took()
	r.want("number 3 is not durable yet", r.early)
	r.c.committed(r.now, second)
	r.took()
	got := lines(r.early)
	slices.Sort(got)
	want := []string{
		"100.64.1.2:4342 Map-Notify " + web + " v3 ttl 10 " + hv3 + " of 3",
		"100.64.2.2:4342 Map-Notify " + web + " v3 ttl 10 " + hv3 + " of 3",
	}
	if !slices.Equal(got, want) {
		t.Errorf("both who had it are told of the last: %v", got)
	}
}

func TestOlderVersionsAreRefusedAndTold(t *testing.T) {
	r := newRig(t, cloud())
	r.register(xtr{id: 1, addr: hv1, version: 5}, web)
	for _, c := range []struct {
		x    xtr
		told bool
		why  string
	}{
		{xtr{id: 2, addr: hv2, version: 4}, true, "older-version (1 times)"},
		{xtr{id: 2, addr: hv2, version: 5}, true, "same-version-lower-xtr-id-holds (1 times)"},
		{xtr{id: 2, addr: hv2, version: 3, ttl: withdrawn}, true, "older-version (1 times)"},
		{xtr{id: 2, addr: hv2, ttl: withdrawn}, true, "not-the-holder (1 times)"},
		{xtr{id: 2, addr: hv2, version: 5, set: func(m *lisp.MapRegister) { m.WantMapNotify = false }}, true, "same-version-lower-xtr-id-holds (1 times)"},
	} {
		r.register(c.x, web)
		r.want("answer", r.early, "100.64.2.2:4342 Map-Notify "+web+" v5 ttl 10 100.64.1.2 of 1")
		if n := r.early[0].msg.(*lisp.MapNotify).Nonce; n != r.nonce {
			t.Errorf("answered with nonce %d, want %d", n, r.nonce)
		}
		r.want("no acknowledgement", r.late)
		r.wantMapping(web, "v5 of 1 at 100.64.1.2")
		rows := r.c.registrationRows(r.now)
		if i := slices.IndexFunc(rows, func(r RegistrationRow) bool { return r.XTRID[15] == 2 }); i < 0 || rows[i].Refused != c.why {
			t.Errorf("version %d: table says %+v, want %q", c.x.version, rows, c.why)
		}
	}
	// Accepted later: the refusal is no news any more.
	r.register(xtr{id: 2, addr: hv2, version: 6}, web)
	for _, row := range r.c.registrationRows(r.now) {
		if row.Refused != "" {
			t.Errorf("still refused: %+v", row)
		}
	}
}

func TestTheLowerXTRIDWinsATie(t *testing.T) {
	r := newRig(t, cloud())
	r.register(xtr{id: 2, addr: hv2, version: 5}, web)
	r.register(xtr{id: 1, addr: hv1, version: 5}, web)
	r.wantMapping(web, "v5 of 1 at 100.64.1.2")
	r.want("the other is told", r.early, "100.64.2.2:4342 Map-Notify "+web+" v5 ttl 10 100.64.1.2 of 1")
}

func TestTheMapNotifyToThePreviousXTRIsRepeatedUntilAcknowledged(t *testing.T) {
	r := newRig(t, cloud())
	r.register(xtr{id: 1, addr: hv1, rlocs: []string{hv1, "100.64.11.2 2", "100.64.12.2 255"}}, web)
	r.register(xtr{id: 2, addr: hv2, version: 2}, web)
	start := r.now
	nonce := r.early[0].msg.(*lisp.MapNotify).Nonce
	var at []time.Duration
	var to []string
	for r.now.Sub(start) < 2*time.Minute {
		d := r.c.deadline()
		r.wait(d.Sub(r.now))
		for _, s := range r.early {
			if s.msg.(*lisp.MapNotify).Nonce != nonce {
				t.Fatal("another nonce")
			}
			at, to = append(at, r.now.Sub(start)), append(to, s.to[0].Addr().String())
		}
		if len(r.early) == 0 {
			break
		}
	}
	if want := []time.Duration{3e9, 6e9, 9e9, 15e9, 27e9, 51e9}; !slices.Equal(at, want) {
		t.Errorf("repeated after %v, want %v", at, want)
	}
	if want := []string{"100.64.11.2", hv1, "100.64.11.2", hv1, "100.64.11.2", hv1}; !slices.Equal(to, want) {
		t.Errorf("repeated to %v, want %v", to, want)
	}
	r.count("notify/unacknowledged", 1)

	// Acknowledged: no repetition. A wrong key, another nonce, another EID do not acknowledge.
	r.register(xtr{id: 1, addr: hv1, version: 3}, web)
	told := r.early[0]
	wrong := propKey
	wrong.Secret = "guessed"
	r.ack(hv2, told, &wrong)
	r.count("ack/authentication-failed", 1)
	other := *told.msg.(*lisp.MapNotify)
	other.Nonce++
	r.ack(hv2, send{msg: &other}, &propKey)
	r.count("ack/unexpected", 1)
	if len(r.c.pending) != 1 {
		t.Fatal("is not waiting any more")
	}
	r.ack(hv2, told, &propKey)
	r.count("ack/accepted", 1)
	if len(r.c.pending)+len(r.c.byNonce) != 0 {
		t.Error("still waits for an acknowledgement")
	}
}

func TestAControllerRegistersOnBehalf(t *testing.T) {
	r := newRig(t, cloud())
	r.register(xtr{id: 1, addr: hv1}, web)
	r.register(xtr{id: 2, addr: ctl, rlocs: []string{hv2}, key: &ctlKey, version: 2}, web)
	r.wantMapping(web, "v2 of 2 at 100.64.2.2")
	r.want("the controller is answered with its own key", r.late, "100.64.9.2:4342 Map-Notify "+web+" v2 ttl 10 100.64.2.2 of 2")
	if r.late[0].key.ID != ctlKey.ID {
		t.Errorf("signed with key %d", r.late[0].key.ID)
	}
	r.want("the old and the new xTR are told", r.early,
		"100.64.1.2:4342 Map-Notify "+web+" v2 ttl 10 100.64.2.2 of 2",
		"100.64.2.2:4342 Map-Notify "+web+" v2 ttl 10 100.64.2.2 of 2")
	for _, s := range r.early {
		if s.key.ID != propKey.ID {
			t.Errorf("signed with key %d", s.key.ID)
		}
	}
	// The xTR's own claim is then a refresh, with whatever it knows.
	for _, v := range []lisp.Version{0, 2} {
		r.register(xtr{id: 2, addr: hv2, version: v}, web)
		r.want("own claim", r.early)
		r.want("own claim", r.late, "100.64.2.2:4342 Map-Notify "+web+" v2 ttl 10 100.64.2.2 of 2")
		if len(r.put) != 0 {
			t.Errorf("sinks are told of %v", r.put)
		}
	}
	// And the other way round: the controller's comes second, and takes nothing from what is known of the xTR.
	r.register(xtr{id: 1, addr: hv1, version: 3}, web)
	r.register(xtr{id: 1, addr: ctl, rlocs: []string{hv1}, key: &ctlKey, version: 3}, web)
	r.want("second", r.early)
	if e := r.c.entries[mustEID(web)]; e.regs[0].OnBehalf || e.regs[0].Source.String() != hv1 {
		t.Errorf("registrant became %+v", e.regs[0])
	}
}

// TestNoncesAreAppliedPerXTRAndKey: replays change nothing (RFC 9301 section 5.6).
func TestNoncesAreAppliedPerXTRAndKey(t *testing.T) {
	r := newRig(t, cloud())
	first := r.register(xtr{id: 1, addr: hv1}, web)
	r.register(xtr{id: 2, addr: hv2}, web)
	r.handle(first)
	r.want("the last one is answered again, with what is true now", r.early, "100.64.1.2:4342 Map-Notify "+web+" v2 ttl 10 100.64.2.2 of 2")
	r.wantMapping(web, "v2 of 2 at 100.64.2.2")
	r.count("register/retransmitted", 1)

	second := r.register(xtr{id: 1, addr: hv1, version: 3}, web)
	r.handle(first)
	r.want("a replay", r.early)
	r.want("a replay", r.late)
	r.count("register/refused/nonce-not-greater", 1)
	if len(r.reports) != 1 || !strings.Contains(r.reports[0], "nonce-not-greater") {
		t.Errorf("logged %q", r.reports)
	}
	r.handle(first)
	if len(r.reports) != 0 {
		t.Errorf("logged again at once: %q", r.reports)
	}
	spoofed := second
	spoofed.From = netip.MustParseAddrPort("192.0.2.66:4342")
	r.handle(spoofed)
	r.want("the last one, from elsewhere", append(r.early, r.late...))

	// Another key, another sequence: here a controller whose clock is behind.
	r.nonce = 0
	r.register(xtr{id: 1, addr: ctl, rlocs: []string{hv1}, key: &ctlKey, version: 3}, web)
	r.want("controller", r.late, "100.64.9.2:4342 Map-Notify "+web+" v3 ttl 10 100.64.1.2 of 1")
}

func TestARetransmissionAfterARestartIsAnswered(t *testing.T) {
	r := newRig(t, cloud())
	p := r.register(xtr{id: 1, addr: hv1}, web)
	r.restart()
	r.handle(p)
	r.want("answer", r.late, "100.64.1.2:4342 Map-Notify "+web+" v1 ttl 10 100.64.1.2 of 1")
	// And the nonces are remembered.
	r.nonce = 0
	r.register(xtr{id: 1, addr: hv1, set: func(m *lisp.MapRegister) { m.Nonce = 0 }}, web)
	r.count("register/refused/nonce-not-greater", 1)
}

func TestWhoMayRegisterWhat(t *testing.T) {
	old := cloud().Sites[1].Keys[0]
	forged := propKey
	forged.Secret = "guessed"
	unknown := propKey
	unknown.ID = 99
	otherAlg := propKey
	otherAlg.Algorithm = lisp.AlgHMACSHA1_96
	rfc := propKey
	rfc.Format = lisp.FormatRFC
	for _, c := range []struct {
		name string
		x    xtr
		eid  string
		why  reason
	}{
		{"more-specific of the site", xtr{id: 1, addr: hv1}, "198.51.100.128/25", ""},
		{"instance", xtr{id: 1, addr: hv1}, "[7]10.1.0.0/16", ""},
		{"another instance", xtr{id: 1, addr: hv1}, "[8]10.1.0.0/16", reasonNotConfigured},
		{"nobody's", xtr{id: 1, addr: hv1}, "192.0.2.0/24", reasonNotConfigured},
		{"wider than configured", xtr{id: 1, addr: hv1}, "198.51.0.0/16", reasonNotConfigured},
		{"exactly the prefix", xtr{addr: "192.0.2.1", key: &old}, "203.0.113.0/24", ""},
		{"more-specific", xtr{addr: "192.0.2.1", key: &old}, "203.0.113.1/32", reasonMoreSpecific},
		{"locator outside", xtr{addr: "192.0.2.1", rlocs: []string{hv1}, key: &old}, "203.0.113.0/24", reasonLocator},
		{"multicast locator", xtr{id: 1, addr: hv1, rlocs: []string{"224.0.0.1"}}, web, reasonBadLocator},
		{"unspecified locator", xtr{id: 1, addr: hv1, rlocs: []string{"::"}}, web, reasonBadLocator},
		{"forged", xtr{id: 1, addr: hv1, key: &forged}, web, reasonAuth},
		{"unknown key", xtr{id: 1, addr: hv1, key: &unknown}, web, reasonUnknownKey},
		{"the key with another algorithm", xtr{id: 1, addr: hv1, key: &otherAlg}, web, reasonUnknownKey},
		{"key of another site", xtr{id: 1, addr: hv1, key: &old}, web, reasonUnknownKey},
		{"digest does not cover the xTR-ID", xtr{id: 1, addr: hv1, key: &rfc}, web, reasonAuthScope},
		{"no xTR-ID, so nothing is uncovered", xtr{addr: hv1, key: &rfc}, web, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t, cloud())
			r.register(c.x, c.eid)
			registered := r.mapping(c.eid) != "none"
			if registered != (c.why == "") {
				t.Errorf("registered: %v", registered)
			}
			if c.why == "" {
				return
			}
			r.count("register/refused/"+string(c.why), 1)
			if len(r.late)+len(r.early) != 0 {
				t.Errorf("answered with %v", lines(append(r.late, r.early...)))
			}
			rows := r.c.registrationRows(r.now)
			if len(rows) != 1 || rows[0].State != "refused" || rows[0].Refused != string(c.why)+" (1 times)" || rows[0].Source != c.x.addr {
				t.Errorf("the table says %+v", rows)
			}
			if len(r.reports) != 1 || !strings.Contains(r.reports[0], string(c.why)) {
				t.Errorf("the log says %q", r.reports)
			}
		})
	}
}

func TestARecordOfAnotherSiteInTheSameMessage(t *testing.T) {
	r := newRig(t, cloud())
	r.register(xtr{id: 1, addr: hv1}, web, "203.0.113.0/24", "198.51.100.11/32")
	r.want("answer", r.late, "100.64.1.2:4342 Map-Notify "+web+" v1 ttl 10 100.64.1.2; 198.51.100.11/32 v1 ttl 10 100.64.1.2 of 1")
	r.count("register/refused/key-of-another-site", 1)
	r.wantMapping("203.0.113.0/24", "none")
}

// TestSeveralRecords: what is the sender's own comes back in one message, what is not in one each.
func TestSeveralRecords(t *testing.T) {
	r := newRig(t, cloud())
	r.register(xtr{id: 1, addr: hv1, version: 9}, web)
	r.register(xtr{id: 2, addr: hv2, version: 3}, "198.51.100.11/32", web, "198.51.100.12/32")
	r.want("refused", r.early, "100.64.2.2:4342 Map-Notify "+web+" v9 ttl 10 100.64.1.2 of 1")
	r.want("accepted", r.late, "100.64.2.2:4342 Map-Notify 198.51.100.11/32 v3 ttl 10 100.64.2.2; 198.51.100.12/32 v3 ttl 10 100.64.2.2 of 2")
}

func TestForeignXTRsWithoutAnID(t *testing.T) {
	old := cloud().Sites[1].Keys[0]
	r := newRig(t, cloud())
	x, y := xtr{addr: "192.0.2.1", key: &old}, xtr{addr: "192.0.2.2", key: &old}
	const eid = "203.0.113.0/24"
	r.register(x, eid)
	r.want("no trailer for who sent none", r.late, "192.0.2.1:4342 Map-Notify "+eid+" v1 ttl 10 192.0.2.1 of 0")
	if r.late[0].msg.(*lisp.MapNotify).HasXTRID {
		t.Error("has an xTR-ID")
	}
	// The last one wins, as often as they like, whatever the nonce.
	for i := range 20 {
		r.nonce -= 2
		r.register(y, eid)
		r.wantMapping(eid, "v"+itoa(2*i+2)+" of 0 at 192.0.2.2")
		r.want("the other is told", r.early, "192.0.2.1:4342 Map-Notify "+eid+" v"+itoa(2*i+2)+" ttl 10 192.0.2.2 of 0")
		r.nonce -= 2
		r.register(x, eid)
		r.wantMapping(eid, "v"+itoa(2*i+3)+" of 0 at 192.0.2.1")
	}
	// The same again is no news.
	r.register(x, eid)
	r.want("no news", r.early)
}

func itoa(n int) string { return strconv.Itoa(n) }

func TestExpiry(t *testing.T) {
	r := newRig(t, cloud())
	r.register(xtr{id: 1, addr: hv1, ttl: 60}, web)
	r.register(xtr{id: 1, addr: hv1, ttl: 7, set: func(m *lisp.MapRegister) { m.UseTTL = true }}, "198.51.100.11/32")
	r.wait(2 * time.Minute)
	r.register(xtr{id: 1, addr: hv1, version: 1, ttl: 60}, web) // a refresh
	r.wait(3*time.Minute - time.Second)
	r.wantMapping(web, "v1 of 1 at 100.64.1.2")
	r.wait(time.Second)
	r.wantMapping(web, "none")
	if len(r.put) != 1 || r.put[0] != mustEID(web) {
		t.Errorf("sinks are told of %v", r.put)
	}
	if got := r.batch.Registrations[mustEID(web)]; got == nil || len(got.Registrants) != 0 || got.Mapping.Version != 1 {
		t.Errorf("to be stored: %+v", got)
	}
	r.wantMapping("198.51.100.11/32", "v1 of 1 at 100.64.1.2")
	r.wait(2 * time.Minute)
	r.wantMapping("198.51.100.11/32", "none")
	r.count("registration/expired", 2)

	// The version is remembered: an old host cannot come back with an older one, a new one goes on from it.
	r.register(xtr{id: 2, addr: hv2}, web)
	r.wantMapping(web, "v2 of 2 at 100.64.2.2")
	r.register(xtr{id: 1, addr: hv1, version: 1}, web)
	r.wantMapping(web, "v2 of 2 at 100.64.2.2")

	// But not for ever.
	r.wait(31 * 24 * time.Hour)
	if len(r.c.entries) != 0 || len(r.c.alarms) != 0 {
		// web expired in between and is remembered from then.
		r.wait(31 * 24 * time.Hour)
	}
	if len(r.c.entries) != 0 {
		t.Errorf("still known: %d", len(r.c.entries))
	}
}

func TestTheHolderLivesEvenIfItIsBehind(t *testing.T) {
	r := newRig(t, cloud())
	r.register(xtr{id: 1, addr: hv1}, web)
	r.register(xtr{id: 1, addr: ctl, rlocs: []string{hv1}, key: &ctlKey, version: 4}, web)
	for range 5 { // it never hears of version 4
		r.wait(time.Minute)
		r.register(xtr{id: 1, addr: hv1, version: 1}, web)
		r.want("told", r.early[len(r.early)-1:], "100.64.1.2:4342 Map-Notify "+web+" v4 ttl 10 100.64.1.2 of 1")
	}
	r.wantMapping(web, "v4 of 1 at 100.64.1.2")
}

func TestWithdrawal(t *testing.T) {
	r := newRig(t, cloud())
	r.register(xtr{id: 1, addr: hv1, version: 3}, web)
	r.register(xtr{id: 1, addr: hv1, version: 3, ttl: withdrawn}, web)
	r.wantMapping(web, "none")
	r.want("answer", r.late, "100.64.1.2:4342 Map-Notify "+web+" v3 ttl 0 of 1")
	if len(r.put) != 1 {
		t.Errorf("sinks are told of %v", r.put)
	}
	r.register(xtr{id: 1, addr: hv1, version: 3, ttl: withdrawn}, web)
	r.want("again", r.late, "100.64.1.2:4342 Map-Notify "+web+" v3 ttl 0 of 1")
	if len(r.put) != 0 {
		t.Errorf("sinks are told of %v", r.put)
	}
	// Of what was never known.
	r.register(xtr{id: 1, addr: hv1, version: 3, ttl: withdrawn}, "198.51.100.99/32")
	r.want("unknown", r.late, "100.64.1.2:4342 Map-Notify 198.51.100.99/32 v3 ttl 0 100.64.1.2 of 1")
	// A refresh of the same brings it back; a newer withdrawal of somebody else is believed and told.
	r.register(xtr{id: 1, addr: hv1, version: 3}, web)
	r.wantMapping(web, "v3 of 1 at 100.64.1.2")
	r.register(xtr{id: 2, addr: hv2, version: 4, ttl: withdrawn}, web)
	r.wantMapping(web, "none")
	r.want("told", r.early, "100.64.1.2:4342 Map-Notify "+web+" v4 ttl 0 of 2")
}

func TestMerge(t *testing.T) {
	r := newRig(t, cloud())
	merge := func(m *lisp.MapRegister) { m.Merge = true }
	const eid = "198.51.100.0/24"
	r.register(xtr{id: 2, addr: hv2, set: merge, ttl: 20}, eid)
	r.register(xtr{id: 1, addr: hv1, set: merge}, eid)
	r.wantMapping(eid, "v2 of 1 at 100.64.1.2 100.64.2.2")
	r.want("each is answered as itself", r.late, "100.64.1.2:4342 Map-Notify "+eid+" v2 ttl 10 100.64.1.2 100.64.2.2 of 1")
	r.want("nobody lost it", r.early)
	r.register(xtr{id: 2, addr: hv2, set: merge, ttl: 20}, eid) // a refresh
	r.wantMapping(eid, "v2 of 1 at 100.64.1.2 100.64.2.2")
	if len(r.put) != 0 {
		t.Error("a refresh is news")
	}
	// One changes its locators, then expires; the other stays.
	r.register(xtr{id: 1, addr: hv1, rlocs: []string{hv3}, set: merge}, eid)
	r.wantMapping(eid, "v3 of 1 at 100.64.2.2 "+hv3)
	for range 3 {
		r.wait(time.Minute)
		r.register(xtr{id: 2, addr: hv2, set: merge, ttl: 20}, eid)
	}
	r.wantMapping(eid, "v4 of 2 at 100.64.2.2")
	// And withdraws.
	r.register(xtr{id: 1, addr: hv1, set: merge}, eid)
	r.register(xtr{id: 1, addr: hv1, set: merge, ttl: withdrawn}, eid)
	r.wantMapping(eid, "v6 of 2 at 100.64.2.2")
	r.register(xtr{id: 2, addr: hv2, set: merge, ttl: withdrawn}, eid)
	r.wantMapping(eid, "none")
	// Without the bit the set is replaced.
	r.register(xtr{id: 1, addr: hv1, set: merge}, eid)
	r.register(xtr{id: 2, addr: hv2, set: merge}, eid)
	r.register(xtr{id: 3, addr: hv3}, eid)
	r.wantMapping(eid, "v9 of 3 at "+hv3)
	if len(r.early) != 2 {
		t.Errorf("both are told: %v", lines(r.early))
	}
}

func TestMergedLocatorsOfOneRLOC(t *testing.T) {
	r := newRig(t, cloud())
	merge := func(m *lisp.MapRegister) { m.Merge = true }
	const eid = "198.51.100.0/24"
	r.register(xtr{id: 1, addr: hv1, rlocs: []string{hv1 + " 3", hv2 + " 4"}, set: merge}, eid)
	r.wait(time.Second)
	r.register(xtr{id: 2, addr: hv2, rlocs: []string{hv2 + " 7"}, set: merge}, eid)
	m, _ := r.c.current(mustEID(eid))
	if len(m.Locators) != 2 || m.Locators[0].Priority != 3 || m.Locators[1].Priority != 7 {
		t.Errorf("united: %+v", m.Locators)
	}
}

func TestFlappingIsDamped(t *testing.T) {
	r := newRig(t, cloud())
	r.register(xtr{id: 1, addr: hv1}, web)
	claim := func(id byte, addr string) {
		r.wait(10 * time.Second)
		r.register(xtr{id: id, addr: addr}, web)
	}
	claim(2, hv2)
	claim(1, hv1)
	claim(2, hv2)
	claim(1, hv1)
	claim(2, hv2)
	r.wantMapping(web, "v6 of 2 at 100.64.2.2")
	claim(1, hv1)
	r.wantMapping(web, "v6 of 2 at 100.64.2.2")
	r.want("told", r.early[len(r.early)-1:], "100.64.1.2:4342 Map-Notify "+web+" v6 ttl 10 100.64.2.2 of 2")
	if rows := r.c.registrationRows(r.now); rows[len(rows)-1].State != "refused" || rows[0].State != "frozen" {
		t.Errorf("rows %+v", rows)
	}
	// The holder refreshes, and cannot raise its version.
	r.register(xtr{id: 2, addr: hv2, version: 8}, web)
	r.wantMapping(web, "v6 of 2 at 100.64.2.2")
	r.want("answer", r.late, "100.64.2.2:4342 Map-Notify "+web+" v6 ttl 10 100.64.2.2 of 2")
	// It lasts as long as others claim.
	for range 10 {
		r.wait(100 * time.Second)
		r.register(xtr{id: 2, addr: hv2, version: 6}, web)
		r.register(xtr{id: 1, addr: hv1, version: 7}, web)
		r.wantMapping(web, "v6 of 2 at 100.64.2.2")
	}
	// A controller ends it.
	r.register(xtr{id: 1, addr: ctl, rlocs: []string{hv1}, key: &ctlKey, version: 7}, web)
	r.wantMapping(web, "v7 of 1 at 100.64.1.2")
	if r.c.entries[mustEID(web)].damping.frozen {
		t.Error("still frozen")
	}
}

// Whoever says that its VM has left was not robbed of it: such moves are no flapping, however many they are.
func TestConcededMovesAreNoFlapping(t *testing.T) {
	r := newRig(t, cloud())
	r.register(xtr{id: 1, addr: hv1, version: 10}, web)
	addr := []string{hv2, hv1}
	for i := range 20 {
		v := lisp.Version(i + 11)
		r.register(xtr{id: byte(2 - i%2), addr: addr[i%2], version: v}, web)
		r.wantMapping(web, fmt.Sprintf("v%d of %d at %s", v, 2-i%2, addr[i%2]))
		for range 2 { // it is repeated
			r.register(xtr{id: byte(1 + i%2), addr: addr[1-i%2], version: v - 2, ttl: withdrawn}, web)
			r.wantMapping(web, fmt.Sprintf("v%d of %d at %s", v, 2-i%2, addr[i%2]))
		}
	}
	r.count("register/conceded", 40)
	// A third has nothing to say, and what is held is not conceded.
	for i := range 6 {
		v := lisp.Version(i + 31)
		r.register(xtr{id: byte(2 - i%2), addr: addr[i%2], version: v}, web)
		r.register(xtr{id: 3, addr: "100.64.3.2", version: v - 2, ttl: withdrawn}, web)
	}
	r.wantMapping(web, "v35 of 2 at 100.64.2.2")
	if !r.c.entries[mustEID(web)].damping.frozen {
		t.Error("somebody else's word has kept it from being frozen")
	}
}

func TestAFrozenEIDThaws(t *testing.T) {
	freeze := func() *rig {
		r := newRig(t, cloud())
		for i := range 7 {
			r.register(xtr{id: byte(1 + i%2), addr: []string{hv1, hv2}[i%2]}, web)
		}
		r.wantMapping(web, "v6 of 2 at 100.64.2.2")
		if !r.c.entries[mustEID(web)].damping.frozen {
			t.Fatal("not frozen")
		}
		return r
	}
	t.Run("when nobody else claims it", func(t *testing.T) {
		r := freeze()
		r.wait(90 * time.Second)
		r.register(xtr{id: 2, addr: hv2, version: 6}, web)
		r.wait(90 * time.Second)
		r.register(xtr{id: 1, addr: hv1, version: 7}, web)
		r.wantMapping(web, "v7 of 1 at 100.64.1.2")
	})
	t.Run("when the holder withdraws it", func(t *testing.T) {
		r := freeze()
		r.register(xtr{id: 2, addr: hv2, version: 6, ttl: withdrawn}, web)
		r.register(xtr{id: 1, addr: hv1, version: 7}, web)
		r.wantMapping(web, "v7 of 1 at 100.64.1.2")
	})
	t.Run("when the holder is gone", func(t *testing.T) {
		r := freeze()
		for range 3 {
			r.wait(time.Minute)
			r.register(xtr{id: 1, addr: hv1, version: 7}, web)
		}
		r.wantMapping(web, "v7 of 1 at 100.64.1.2")
	})
}

func TestAnnouncedMovesMayBeAsFrequentAsTheyLike(t *testing.T) {
	r := newRig(t, cloud())
	r.register(xtr{id: 1, addr: hv1}, web)
	for i := range 40 {
		id, addr, v := byte(1+(i+1)%2), []string{hv1, hv2}[(i+1)%2], lisp.Version(2+i)
		own, announced := xtr{id: id, addr: addr, version: v}, xtr{id: id, addr: ctl, rlocs: []string{addr}, key: &ctlKey, version: v}
		r.wait(time.Second)
		if i%3 == 0 { // whichever of the two comes first
			r.register(own, web)
			r.register(announced, web)
			r.register(announced, web)
		} else {
			r.register(announced, web)
			r.register(own, web)
		}
		if want := "v" + itoa(2+i) + " of " + itoa(int(id)) + " at " + addr; r.mapping(web) != want {
			t.Fatalf("after move %d: %s, want %s", i+1, r.mapping(web), want)
		}
	}
	// And they do not use up what unannounced ones may do.
	for i := range 5 {
		r.register(xtr{id: byte(3 + i), addr: hv3}, web)
	}
	r.wantMapping(web, "v46 of 7 at "+hv3)
	r.register(xtr{id: 1, addr: hv1}, web)
	r.wantMapping(web, "v46 of 7 at "+hv3)
}

func TestLimitOfRegistrations(t *testing.T) {
	cfg := cloud()
	cfg.MaxRegistrations = 2
	r := newRig(t, cfg)
	r.register(xtr{id: 1, addr: hv1}, web, "198.51.100.11/32", "198.51.100.12/32")
	r.count("register/refused/too-many-registrations", 1)
	if len(r.c.entries) != 2 {
		t.Errorf("%d EIDs", len(r.c.entries))
	}
}

func TestRefusalsAreBounded(t *testing.T) {
	r := newRig(t, cloud())
	forged := propKey
	forged.Secret = "x"
	r.register(xtr{id: 9, addr: hv1, version: 1}, web)
	r.register(xtr{id: 10, addr: hv1, version: 1}, web)
	for i := range 2 * maxUnauthenticated {
		p := r.message(xtr{id: 1, addr: hv1, key: &forged}, "198.51.100.1/32")
		p.Msg.(*lisp.MapRegister).XTRID = lisp.XTRID{byte(i), byte(i >> 8)}
		r.handle(p)
	}
	if r.register(xtr{id: 1, addr: hv1, key: &forged}, "198.51.100.2/32"); len(r.reports) != 0 {
		t.Errorf("still logs: %q", r.reports)
	}
	r.wait(10 * time.Second)
	if r.register(xtr{id: 1, addr: hv1, key: &forged}, "198.51.100.3/32"); len(r.reports) != 1 || !strings.Contains(r.reports[0], "suppressed494") {
		t.Errorf("logs %q", r.reports)
	}
	known := 0
	for _, x := range r.c.refusals.all() {
		if x.known {
			known++
		}
	}
	if n := len(r.c.refusals.all()); n != maxUnauthenticated+1 || known != 1 {
		t.Errorf("%d refusals are kept, %d of them of authenticated senders", n, known)
	}
}

func TestAWarmRestart(t *testing.T) {
	r := newRig(t, cloud())
	r.register(xtr{id: 1, addr: hv1, version: 4, ttl: 60, set: func(m *lisp.MapRegister) { m.UseTTL = true }}, web)
	r.register(xtr{id: 2, addr: hv2, version: 9}, "198.51.100.11/32")
	r.register(xtr{id: 2, addr: hv2, version: 9, ttl: withdrawn}, "198.51.100.11/32")
	r.register(xtr{id: 2, addr: hv2}, "198.51.100.12/32")
	r.now = r.now.Add(10 * time.Hour) // nobody could refresh anything
	r.restart()
	r.wantMapping(web, "v4 of 1 at 100.64.1.2")
	r.wantMapping("198.51.100.11/32", "none")
	r.ask(nil, web)
	r.want("answers at once", r.early, itr+":61000 Map-Reply "+web+" v4 ttl 60 100.64.1.2")
	r.register(xtr{id: 1, addr: hv1, version: 8}, "198.51.100.11/32")
	r.want("remembers versions", r.early, "100.64.1.2:4342 Map-Notify 198.51.100.11/32 v9 ttl 0 of 2")
	// A lease begins anew, each as long as it was.
	r.wait(3*time.Minute - time.Second)
	r.wantMapping("198.51.100.12/32", "v1 of 2 at 100.64.2.2")
	r.wait(time.Second)
	r.wantMapping("198.51.100.12/32", "none")
	r.wait(57 * time.Minute)
	r.wantMapping(web, "none")
	// The key of an xTR is known, though it has not registered since.
	if k := r.c.keys[lisp.XTRID{15: 2}]; k != (keyRef{"cloud", propKey.ID}) {
		t.Errorf("key of xTR 2: %+v", k)
	}
}

func TestARegistrationThatIsNotConfiguredAnyMore(t *testing.T) {
	r := newRig(t, cloud())
	r.register(xtr{id: 1, addr: hv1}, web, "[7]10.0.0.0/8")
	cfg := cloud()
	cfg.Sites = cfg.Sites[1:]
	p, err := newPolicy(cfg)
	if err != nil {
		t.Fatal(err)
	}
	r.c.policy = p
	r.restart()
	r.wantMapping(web, "none")
	r.ask(nil, web)
	r.want("nobody's", r.early, itr+":61000 Map-Reply 192.0.0.0/5 v0 ttl 15 natively-forward")
}
