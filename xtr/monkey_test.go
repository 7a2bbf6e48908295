package xtr

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/tabi-lisp/tabi/lisp"
	"github.com/tabi-lisp/tabi/testnet/simnet"
)

// Random schedules of moves: prepared or not, aborted before or after the stop, told by the hypervisor or seen
// only, the controller dead or quick, control messages lost. Whatever happens, no packet of a prepared move is
// lost, none comes twice, and in the end everybody agrees.
func TestRandomMoves(t *testing.T) {
	schedules := 40
	if testing.Short() {
		schedules = 10
	}
	for seed := range uint64(schedules) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			inLab(t, func(l *lab) {
				m := &monkey{lab: l, rng: rand.New(rand.NewPCG(seed, 2)), vm: l.newVM("web", 10)}
				m.vm.boot(l.hosts[0])
				m.at = l.hosts[0]
				m.ctl = l.stranger("100.64.10.2")
				defer m.ctl.close()
				stop := m.vm.talk()
				f4, f6 := l.flow(m.vm.eids[0]), l.flow(m.vm.eids[1])
				if seed%3 == 0 {
					l.net.SetPath(simnet.Path{Delay: 500 * time.Microsecond, Jitter: 2 * time.Millisecond, Loss: 0.2, Duplicate: 0.1})
				}
				for i := range 3 + m.rng.IntN(6) {
					m.do(fmt.Sprintf("m%d", i))
					if m.rng.IntN(2) == 0 {
						time.Sleep(time.Duration(m.rng.Int64N(int64(time.Second))))
					}
				}
				l.net.SetPath(simnetPath(0))
				time.Sleep(300 * time.Millisecond)
				f4.end()
				f6.end()
				f4.check(m.vm, m.mayLose)
				f6.check(m.vm, m.mayLose)
				stop()
				time.Sleep(75 * time.Second)
				l.expectAt(m.vm.eids[0], m.at, 0)
				l.expectAt(m.vm.eids[1], m.at, 0)
				l.expectAgreement(m.vm.eids[0], m.at)
				l.expectAgreement(m.vm.eids[1], m.at)
				f := l.flow(m.vm.eids[0])
				m.vm.forget()
				time.Sleep(20 * time.Millisecond)
				f.end()
				f.check(m.vm, false)
				if t.Failed() {
					for _, s := range m.steps {
						t.Log(s)
					}
					for _, h := range l.hosts {
						for _, r := range table[ShowMove](h, "moves") {
							t.Logf("%s: %+v", h.name, r)
						}
					}
				}
			})
		})
	}
}

type monkey struct {
	*lab
	rng     *rand.Rand
	vm      *labVM
	at      *labHost
	mayLose bool
	silent  int // moves that no controller announced
	ctl     *stranger
	nonce   uint64
	steps   []string
}

// announced registers in the target's name, as the controller does.
func (m *monkey) announced(to *labHost, id string) {
	time.Sleep(10 * time.Millisecond) // it has claimed by now
	for _, e := range m.vm.eids {
		m.nonce++
		reg := &lisp.MapRegister{Nonce: m.nonce, ProxyReply: true, HasXTRID: true, XTRID: to.id(),
			Records: []lisp.Mapping{{EID: e, TTL: 1440, Version: to.record(id).Version, Authoritative: true, Locators: to.x.cfg.RLOCs}}}
		raw, err := lisp.AppendSigned(nil, reg, labController)
		if err != nil {
			m.t.Fatal(err)
		}
		for _, s := range m.servers {
			m.ctl.sendRaw(s.addr, raw)
		}
	}
}

// do makes one move, or tries to.
func (m *monkey) do(id string) {
	to := m.hosts[m.rng.IntN(len(m.hosts))]
	if to == m.at {
		return
	}
	from := m.at
	prepared := m.rng.IntN(5) > 0
	abort := m.rng.IntN(4) == 0
	tellsStop, tellsRun := m.rng.IntN(4) > 0, m.rng.IntN(4) > 0
	// More than a few moves that no controller announces would be taken for flapping.
	controller := m.rng.IntN(4) > 0 || m.silent == 2
	if !controller || !prepared || abort {
		m.silent++
		prepared, controller, abort = prepared || m.silent > 2, controller || m.silent > 2, abort && m.silent <= 2
	}
	// Without a prepare the source's hypervisor may say that it sends the VM away, as often as it likes.
	// It says then, too, when the VM stops, and whoever has it when it runs.
	migrating := !prepared && m.rng.IntN(3) > 0
	tellsStop, tellsRun = tellsStop || migrating, tellsRun || migrating
	blackout := time.Duration(m.rng.Int64N(int64(100 * time.Millisecond)))
	if !prepared && !migrating || abort && !tellsRun {
		// Without a prepare, what is given to the old interface after the stop is lost. With nobody to say that
		// the VM goes on at the source, it goes on with what it has left in its interface; the copies of that
		// were replayed to the target, too.
		m.mayLose, m.circle = true, true
	}
	m.steps = append(m.steps, fmt.Sprintf("%s: %s to %s, prepared %v, migrating %v, abort %v, tells of stop %v, of run %v, controller %v, blackout %v",
		id, from.name, to.name, prepared, migrating, abort, tellsStop, tellsRun, controller, blackout))
	if prepared {
		m.prepare(id, m.vm, from, to, 0)
	} else {
		to.must("PUT", "/v1/vms/web", m.vm.spec())
	}
	if to.plane.hasTap("tap-web") {
		to.plane.removeTap("tap-web")
	}
	to.plane.addTap("tap-web")
	for range m.rng.IntN(3) + 1 {
		if migrating {
			from.event("web", EventMigrating)
		}
		time.Sleep(5 * time.Millisecond)
	}
	m.vm.pause()
	time.Sleep(time.Duration(m.rng.Int64N(int64(3 * time.Millisecond))))
	if tellsStop {
		from.event("web", EventStop)
	}
	time.Sleep(blackout)
	if !abort {
		m.vm.resume(to)
		if tellsRun {
			to.event("web", EventResume)
		}
		m.vm.announce()
		m.at = to
		if prepared && controller {
			from.must("POST", "/v1/handovers/"+id+"/commit", nil)
			to.must("POST", "/v1/handovers/"+id+"/commit", nil)
			m.announced(to, id)
		}
		time.Sleep(20 * time.Millisecond)
		return
	}
	m.vm.resume(from)
	if tellsRun {
		from.event("web", EventResume)
	}
	if prepared && (controller || !tellsRun) {
		from.must("POST", "/v1/handovers/"+id+"/abort", nil)
		time.Sleep(2 * time.Millisecond)
		to.must("POST", "/v1/handovers/"+id+"/abort", nil)
	}
	time.Sleep(20 * time.Millisecond)
	to.plane.removeTap("tap-web")
}
