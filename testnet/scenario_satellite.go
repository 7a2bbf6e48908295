package testnet

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"time"

	"github.com/tabi-lisp/tabi/controller/qmp"
)

// SatelliteOptions say how the camp moves. The zero value is the demo's.
type SatelliteOptions struct {
	BitRate uint64 // of the link of the camp, in bits a second and direction; 0 = 20 Mbit/s
	VMs     int    // 0 = 4, as in 2011
	DiskKiB int    // that each VM writes to its disk, over and over; 0 = 4096
}

func (o *SatelliteOptions) fill() {
	if o.BitRate == 0 {
		o.BitRate = 20e6
	}
	if o.VMs == 0 {
		o.VMs = 1 + len(publishedOut)
	}
	if o.DiskKiB == 0 {
		o.DiskKiB = 4096
	}
}

// VMCamp is the kind of cloud in which the scenario of the satellite link plays: the tour's VMs are namespaces, and the
// agents also follow the QEMUs that the scenario starts.
const VMCamp = "camp"

// campMaker makes namespace VMs on hypervisors whose agents follow QEMUs.
type campMaker struct{ namespaceMaker }

func (campMaker) agent(n node, dir string) string { return new(qemuMaker).agent(n, dir) }

func (campMaker) start(context.Context, *Cloud) error {
	if missing := MissingQEMU(); missing != "" {
		return errors.New("testnet: " + missing)
	}
	if _, err := exec.LookPath(imageProgram); err != nil {
		return fmt.Errorf("testnet: there is no %s: apt-get install qemu-utils", imageProgram)
	}
	return nil
}

func init() { makers[VMCamp] = func() maker { return campMaker{} } }

const imageProgram = "qemu-img"

// satelliteChosen says how memory is copied.
const satelliteChosen = `Disks are copied while their VMs run: the base image is at the target, so only the differences go over the link.
Memory is copied with the VM stopped, compressed. Without KVM QEMU's emulation loses pages that are written while a slow
copy goes on, which is no fault of the network; a VM that stands still writes none. On hypervisors with KVM memory is
copied while the VM runs, and it is out of service for milliseconds.`

// The camp and where it goes.
const (
	campFrom = "nezu-hv1"
	campTo   = "nara-hv1"
)

// Ports at the target.
const (
	campStreamPort = 4444
	campDiskPort   = "10809"
)

// outLeast is the least time without an answer that counts as out of service.
const outLeast = time.Second

// campVM is a VM of the camp.
type campVM struct {
	name     string
	v4, v6   netip.Addr
	mac      net.HardwareAddr
	tap      string
	guest    *Guest
	src, dst *QEMU
	beats    []*heartbeat
	report   *CampVM
}

// newCampVM is VM number i of the camp, which does not run yet.
func newCampVM(c *Cloud, i int) *campVM {
	n := byte(101 + i)
	v := &campVM{name: fmt.Sprintf("camp%d", i+1), mac: net.HardwareAddr{0x52, 0x54, 0, 2, 0, n}, report: new(CampVM)}
	a4, a6 := aggregate4.Addr().As4(), onLink6.Addr().As16()
	a4[3], a6[15] = n, n
	v.v4, v.v6, v.tap, v.report.Name = netip.AddrFrom4(a4), netip.AddrFrom16(a6), "tap-"+v.name, v.name
	v.guest = NewGuest(v.name, c.hosts[hostClient4].ns, v.v4)
	return v
}

func (v *campVM) overlay(h *Host) string { return filepath.Join(vmDir(h.dir), v.name+".qcow2") }

// satellite is a Satellite under way.
type satellite struct {
	c        *Cloud
	o        SatelliteOptions
	from, to *Host
	image    Image
	vms      []*campVM
	report   *SatelliteReport
	began    time.Time
}

// Satellite lets the VMs of a camp run on one hypervisor, each with a local disk, and moves them one after the other
// over a slow link to another that has the base image of the disks. The cloud must be of the kind [VMCamp].
func (c *Cloud) Satellite(ctx context.Context, o SatelliteOptions) (*SatelliteReport, error) {
	o.fill()
	if o.VMs > 8 {
		return nil, fmt.Errorf("testnet: a camp of %d VMs: at most 8 have addresses", o.VMs)
	}
	s := &satellite{c: c, o: o, from: c.hosts[campFrom], to: c.hosts[campTo],
		report: &SatelliteReport{From: campFrom, To: campTo, BitRate: o.BitRate, Chosen: satelliteChosen, Machine: machine()}}
	err := s.play(ctx)
	return s.report, errors.Join(err, s.close())
}

func (s *satellite) play(ctx context.Context) error {
	var err error
	if s.image, err = GuestImage(ctx, s.c.opts.Progress); err != nil {
		return err
	}
	begin := time.Now()
	if err := s.boot(ctx); err != nil {
		return err
	}
	s.c.opts.Progress(fmt.Sprintf("%d guests run at %s (%.1f s)", len(s.vms), campFrom, time.Since(begin).Seconds()))
	if err := s.shape(); err != nil {
		return err
	}
	if err := sleep(ctx, time.Second); err != nil {
		return err
	}
	s.began = time.Now()
	for _, v := range s.vms {
		if err := s.move(ctx, v); err != nil {
			return fmt.Errorf("testnet: move of %s: %w", v.name, err)
		}
	}
	if err := sleep(ctx, time.Second); err != nil {
		return err
	}
	return s.conclude(ctx)
}

// boot makes the disks and starts the guests, and what asks them.
func (s *satellite) boot(ctx context.Context) error {
	for _, h := range []*Host{s.from, s.to} {
		if err := makeBase(baseImage(h)); err != nil {
			return err
		}
	}
	for i := range s.o.VMs {
		v := newCampVM(s.c, i)
		s.vms = append(s.vms, v)
		s.report.VMs = append(s.report.VMs, v.report)
		if err := s.define(ctx, v); err != nil {
			return err
		}
	}
	errs := make([]error, len(s.vms))
	var wg sync.WaitGroup
	for i, v := range s.vms {
		wg.Go(func() { errs[i] = s.ready(ctx, v) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

// define tells the controller of a VM, makes its disk and starts its QEMU.
func (s *satellite) define(ctx context.Context, v *campVM) error {
	body := map[string]any{"hypervisor": campFrom, "macs": []string{v.mac.String()}, "eids": endpoint{v.v4, v.v6}.eids(), "interface": v.tap}
	if err := s.c.Controller(ctx, http.MethodPut, "/v1/vms/"+v.name, body, nil); err != nil {
		return err
	}
	var err error
	v.src, err = s.launch(ctx, v, s.from, false)
	return err
}

// ready waits until a guest's program answers, lets it write to its disk, and begins to ask it.
func (s *satellite) ready(ctx context.Context, v *campVM) error {
	if err := v.src.WaitUp(ctx); err != nil {
		return err
	}
	if err := v.guest.Wait(ctx); err != nil {
		return err
	}
	const writes = 512 // KiB a second: a fifth of the link
	if err := v.guest.DiskWrite(ctx, "/dev/vda", s.o.DiskKiB/4, writes); err != nil {
		return err
	}
	for _, p := range []struct {
		from     string
		src, dst netip.Addr
	}{{hostClient4, endpoints[hostClient4].v4, v.v4}, {hostClient6, endpoints[hostClient6].v6, v.v6}} {
		if _, err := Ping(ctx, s.c.hosts[p.from].ns, p.src, p.dst); err != nil {
			return err
		}
		b, err := startHeartbeat(s.c.hosts[p.from].ns, p.src, p.dst)
		if err != nil {
			return err
		}
		v.beats = append(v.beats, b)
	}
	return nil
}

// shape makes the camp's link slow, in both directions.
func (s *satellite) shape() error {
	return errors.Join(s.from.ns.Shape("eth0", s.o.BitRate), s.c.hosts[hostInet].ns.Shape(campFrom, s.o.BitRate),
		s.from.ns.Sysctl("net/ipv4/tcp_wmem", shapedTCP), s.to.ns.Sysctl("net/ipv4/tcp_rmem", shapedTCP))
}

func baseImage(h *Host) string { return filepath.Join(vmDir(h.dir), "base.img") }

// baseSize of the base image in bytes.
const baseSize = 16 << 20

// makeBase makes the base image, the same everywhere: what an installation leaves, which does not compress.
func makeBase(file string) error {
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return fmt.Errorf("testnet: %w", err)
	}
	f, err := os.Create(file)
	if err != nil {
		return fmt.Errorf("testnet: %w", err)
	}
	_, err = io.CopyN(f, rand.NewChaCha8([32]byte{2, 0, 1, 1}), baseSize)
	if err := errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("testnet: base image: %w", err)
	}
	return nil
}

// launch makes a VM's own image on a hypervisor, empty, on top of the base image that is there, and starts a QEMU.
func (s *satellite) launch(ctx context.Context, v *campVM, h *Host, incoming bool) (*QEMU, error) {
	file := v.overlay(h)
	out, err := exec.CommandContext(ctx, imageProgram, "create", "-q", "-f", "qcow2", "-F", "raw", "-b", baseImage(h), file).CombinedOutput()
	if err != nil {
		return nil, fmt.Errorf("testnet: %s create %s: %w: %s", imageProgram, file, err, out)
	}
	return s.run(ctx, v, h, file, incoming)
}

// run starts a QEMU with the VM's image.
func (s *satellite) run(ctx context.Context, v *campVM, h *Host, file string, incoming bool) (*QEMU, error) {
	return NewQEMU(ctx, QEMUConfig{Host: h, Name: v.name, MAC: v.mac, Tap: v.tap, Image: s.image, Incoming: incoming,
		Disks:  []QEMUDisk{{Node: diskNode, File: file, Format: "qcow2"}},
		Params: GuestParams{Name: v.name, NICs: []GuestNIC{{Addrs: linkAddrs(v.v4, v.v6), Gateway4: vmGateway4, Gateway6: vmGateway6}}}})
}

// move moves one VM with its disk.
func (s *satellite) move(ctx context.Context, v *campVM) error {
	id := "camp-" + v.name
	v.report.CopyBegin = time.Since(s.began).Seconds()
	var err error
	if v.dst, err = s.launch(ctx, v, s.to, true); err != nil {
		return err
	}
	if _, err := s.prepare(ctx, id, v.name); err != nil {
		return err
	}
	target := mustNode(campTo).v4().String()
	stream := net.JoinHostPort(target, fmt.Sprint(campStreamPort))
	last := ""
	r, err := qmp.Migrate(ctx, v.src.Monitor(), v.dst.Monitor(), qmp.Options{
		Listen: "tcp:" + stream, Mode: qmp.Offline, Compress: true, Bandwidth: s.o.BitRate, // bytes: the link is the limit, not QEMU
		Disks: []qmp.Disk{{Node: diskNode, TopOnly: true}}, NBD: qmp.NBD{Host: target, Port: campDiskPort},
	}, func(p qmp.Progress) {
		if p.Status != last {
			last = p.Status
			s.c.opts.Progress(fmt.Sprintf("%s: %s", v.name, p.Status))
		}
	})
	if err != nil {
		return errors.Join(err, s.c.Controller(context.WithoutCancel(ctx), http.MethodPost, "/v1/moves/"+id+"/abort", nil, nil))
	}
	if err := s.c.Controller(ctx, http.MethodPost, "/v1/moves/"+id+"/commit", nil, nil); err != nil {
		s.problem("%s: commit: %v", v.name, err)
	}
	v.report.Stopped, v.report.Resumed = r.Stopped.Sub(s.began).Seconds(), r.Resumed.Sub(s.began).Seconds()
	v.report.MemoryMiB = round1(float64(r.Sent) / (1 << 20))
	if info, err := os.Stat(v.overlay(s.from)); err == nil {
		v.report.DiskMiB = round1(float64(info.Size()) / (1 << 20))
	}
	s.report.Seconds = v.report.Resumed
	s.c.opts.Progress(fmt.Sprintf("%s runs at %s", v.name, campTo))
	if err := sleep(ctx, tapStays); err != nil {
		return err
	}
	return v.src.Kill()
}

// prepare has the controller prepare a move.
func (s *satellite) prepare(ctx context.Context, id, vm string) (rec controllerRecord, err error) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	err = s.c.Controller(ctx, http.MethodPut, "/v1/moves/"+id, drainStep{vm, campTo}, &rec)
	for err == nil && rec.State == "preparing" {
		if err = sleep(ctx, 20*time.Millisecond); err == nil {
			err = s.c.Controller(ctx, http.MethodGet, "/v1/moves/"+id, nil, &rec)
		}
	}
	if err == nil && rec.State != "prepared" {
		err = fmt.Errorf("the controller says %q: %s %s", rec.State, rec.Why, rec.Error)
	}
	if err != nil {
		return rec, fmt.Errorf("prepare: %w", err)
	}
	return rec, nil
}

func (s *satellite) problem(format string, a ...any) {
	s.report.Problems = append(s.report.Problems, fmt.Sprintf(format, a...))
}

// conclude reads what the clients heard, checks the disks and the guests, and judges.
func (s *satellite) conclude(ctx context.Context) error {
	for _, v := range s.vms {
		d, err := v.guest.DiskVerify(ctx)
		if err != nil {
			return err
		}
		v.report.DiskBlocks, v.report.DiskWrong = d.Checked, d.Wrong
		if d.Error != "" {
			s.problem("%s: its disk: %s", v.name, d.Error)
		}
		if broken := v.dst.Broken(); broken != "" {
			s.problem("%s: QEMU's emulation lost memory: %s", v.name, broken)
		}
		s.hear(v)
		var rec controllerRecord
		if err := s.c.Controller(ctx, http.MethodGet, "/v1/moves/camp-"+v.name, nil, &rec); err != nil {
			return err
		}
		v.report.Version = rec.Version
	}
	s.report.judge()
	return nil
}

// hear reads a VM's times out of service: those of the family that was without it for longer.
func (s *satellite) hear(v *campVM) {
	now := time.Now()
	var longest time.Duration
	for _, b := range v.beats {
		heard, asked, err := b.end()
		if err != nil {
			s.problem("%s: a client: %v", v.name, err)
		}
		v.report.Asked += asked
		v.report.Answered += uint64(len(heard))
		out := silences(heard, s.began, now, outLeast)
		var sum time.Duration
		for _, o := range out {
			sum += o.length()
		}
		if sum < longest {
			continue
		}
		longest, v.report.Out = sum, nil
		for _, o := range out {
			v.report.Out = append(v.report.Out, [2]float64{o.from.Sub(s.began).Seconds(), o.to.Sub(s.began).Seconds()})
		}
	}
	v.beats = nil
}

// close ends the guests and what asks them.
func (s *satellite) close() error {
	var errs []error
	for _, v := range s.vms {
		for _, b := range v.beats {
			_, _, _ = b.end()
		}
		errs = append(errs, v.guest.Close())
		for _, q := range []*QEMU{v.src, v.dst} {
			if q != nil {
				errs = append(errs, q.Kill())
			}
		}
	}
	return errors.Join(errs...)
}
