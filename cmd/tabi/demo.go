package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/tabi-lisp/tabi/testnet"
)

type demoOptions struct {
	scenario testnet.Scenario
	vm       string
	other    scenarioOptions
	rate     int
	bitRate  int
	pcap     string
	keep     bool
	json     bool
	logLevel string
}

func newDemoCommand() *cobra.Command {
	var o demoOptions
	c := &cobra.Command{
		Use:   "demo",
		Short: "Bring up a federated cloud on this machine, move a VM between its sites, count what was lost",
		Long: `Bring up a federated cloud on this machine: three sites, two representative ETRs, two Map-Servers, an
Internet router with an IPv6 and an IPv4 client, another LISP network with its own Map-Server. A VM moves
Nezu -> Hokuriku -> Nara -> Nezu while clients talk to it, and the report says what they saw.

Everything is in network namespaces of its own and is taken away afterwards, also after Ctrl-C and kill -9.
It needs root, and nothing installed; with --vm qemu or --vm libvirt, what "tabi demo setup" installs.`,
		Example: `  sudo tabi demo
  sudo tabi demo --moves 30 --json
  sudo tabi demo --keep --pcap /tmp/pcap
  sudo tabi demo --vm qemu
  sudo tabi demo --scenario drain --vms 200
  sudo tabi demo --scenario satellite
  sudo tabi demo --scenario koshien --viewers 5000 --svg koshien.svg`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return demo(cmd.Context(), cmd.OutOrStdout(), cmd.ErrOrStderr(), o)
		},
	}
	f := c.Flags()
	f.StringVar(&o.vm, "vm", testnet.VMNamespace, "what moves: namespace (looks like a VM, is there at once), or a real guest: qemu (migrated by its monitor), libvirt (by virsh)")
	f.IntVar(&o.scenario.Moves, "moves", 3, "how often the VM moves")
	f.DurationVar(&o.scenario.Blackout, "blackout", 200*time.Millisecond, "how long the VM runs nowhere in each move")
	f.DurationVar(&o.scenario.Interval, "interval", 2*time.Second, "time between moves")
	f.Uint64Var(&o.scenario.Seed, "seed", 1, "of the transfers' content and of the moments at which moves begin")
	f.IntVar(&o.rate, "rate", 2000, "packets a second of each Internet flow, in each direction")
	f.IntVar(&o.bitRate, "bit-rate", 20e6, "bits a second of each TCP transfer, in each direction")
	f.StringVar(&o.pcap, "pcap", "", "capture what passes at each host into files in this directory")
	f.BoolVar(&o.keep, "keep", false, "leave the cloud up after the report, until Ctrl-C or tabi demo down")
	f.BoolVar(&o.json, "json", false, "print the report as JSON")
	f.StringVar(&o.logLevel, "log-level", "info", "the daemons' log level")
	o.other.flags(c)
	c.AddCommand(newDemoShellCommand(), newDemoLsCommand(), newDemoDownCommand(), newDemoSetupCommand(), newDemoJanitorCommand())
	return c
}

func demo(ctx context.Context, out, progress io.Writer, o demoOptions) (err error) {
	if missing := testnet.MissingPrivilege(); missing != "" {
		return errors.New("demo: " + missing)
	}
	if o.scenario.Moves < 0 || o.rate < 1 || o.bitRate < 8 {
		return errors.New("demo: --moves, --rate and --bit-rate want positive numbers")
	}
	if err := o.other.check(); err != nil {
		return err
	}
	exe, err := os.Executable()
	if err != nil {
		return fmt.Errorf("demo: own executable: %w", err)
	}
	p := newProgress(progress)
	defer p.close()
	options := testnet.Options{Binary: exe, Pcap: o.pcap, Rate: o.rate, BitRate: o.bitRate,
		Seed: o.scenario.Seed, LogLevel: o.logLevel, Janitor: []string{exe, "demo", "janitor"}, Progress: p.step, KeepFailed: o.keep,
		VM: o.vm}
	o.other.apply(&options)
	c, err := testnet.Start(ctx, options)
	if c != nil {
		defer func() {
			p.step("taking everything down")
			if e := c.Close(); e != nil {
				err = errors.Join(err, e)
			}
		}()
	}
	switch {
	case err != nil:
	case o.other.name != "":
		err = o.other.play(ctx, c, out, p, o.scenario.Blackout, o.json)
	default:
		p.watch(c.Flows)
		err = play(ctx, c, out, p, o)
	}
	if errors.Is(err, context.Canceled) {
		return fmt.Errorf("demo: interrupted: %w", err)
	}
	if o.keep && c != nil {
		if e := keep(ctx, c, progress, p, err); e != nil || err != nil {
			err = errors.Join(errSilent, e) // what failed has been said
		}
	}
	if err != nil {
		return fmt.Errorf("demo: %w", err)
	}
	return nil
}

// play runs the scenario and prints its report.
func play(ctx context.Context, c *testnet.Cloud, out io.Writer, p *progressLine, o demoOptions) error {
	r, err := c.Play(ctx, o.scenario)
	if err != nil {
		return err
	}
	p.pause()
	if o.json {
		b, e := json.MarshalIndent(r, "", "  ")
		if e == nil {
			_, e = fmt.Fprintf(out, "%s\n", b)
		}
		err = e
	} else {
		err = r.WriteText(out)
	}
	if err == nil && !r.Pass {
		err = errSilent
	}
	return err
}

// keep leaves the cloud up until ctx ends, and says how to look around.
func keep(ctx context.Context, c *testnet.Cloud, w io.Writer, p *progressLine, failed error) error {
	if err := c.Keep(); err != nil {
		return err
	}
	p.pause()
	if failed != nil && !errors.Is(failed, errSilent) {
		fmt.Fprintf(w, "%v\n", failed)
	}
	dir := c.Run().Dir()
	fmt.Fprintf(w, `
The cloud stays up (run %s, namespaces tabi-%s-HOST, files in %s). In another terminal:
  tabi demo shell nezu-hv1       enter a host; hosts: %s
  tabi explain 198.51.100.10 --socket '%s/*/*.sock'
  tabi demo down                 take it down (or Ctrl-C here)
`, c.Run().ID, c.Run().ID, dir, strings.Join(c.Hosts(), " "), dir)
	<-ctx.Done()
	return nil
}

// progressLine says what is going on: on a terminal in one line that is written over, elsewhere line by line.
type progressLine struct {
	w        io.Writer
	terminal bool
	begin    time.Time
	stop     chan struct{}
	done     chan struct{}

	mu     sync.Mutex
	text   string
	flows  *testnet.Flows
	paused bool
}

func newProgress(w io.Writer) *progressLine {
	p := &progressLine{w: w, begin: time.Now(), stop: make(chan struct{}), done: make(chan struct{})}
	if f, ok := w.(*os.File); ok {
		_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
		p.terminal = err == nil
	}
	go p.run()
	return p
}

func (p *progressLine) run() {
	defer close(p.done)
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-p.stop:
			return
		case <-tick.C:
			p.mu.Lock()
			p.draw()
			p.mu.Unlock()
		}
	}
}

// step is a new thing that is being done.
func (p *progressLine) step(text string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.text, p.paused = text, false
	if p.terminal {
		p.draw()
		return
	}
	fmt.Fprintf(p.w, "%6.1f s  %s\n", time.Since(p.begin).Seconds(), text)
}

// watch adds what the flows see to the line.
func (p *progressLine) watch(f *testnet.Flows) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.flows = f
}

// pause clears the line, until the next step.
func (p *progressLine) pause() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.clear()
	p.paused, p.flows = true, nil
}

func (p *progressLine) clear() {
	if p.terminal {
		fmt.Fprint(p.w, "\r\x1b[K")
	}
}

func (p *progressLine) draw() {
	if !p.terminal || p.paused || p.text == "" {
		return
	}
	line := fmt.Sprintf("%6.1f s  %s", time.Since(p.begin).Seconds(), p.text)
	if p.flows != nil {
		line += "  |  " + p.flows.Line()
	}
	if width := p.width(); len(line) > width {
		line = line[:width] // a line that wraps cannot be written over
	}
	fmt.Fprint(p.w, "\r\x1b[K"+line)
}

// width is how many characters fit the terminal's line.
func (p *progressLine) width() int {
	if f, ok := p.w.(*os.File); ok {
		if ws, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ); err == nil && ws.Col > 1 {
			return int(ws.Col) - 1
		}
	}
	return 79
}

func (p *progressLine) close() {
	close(p.stop)
	<-p.done
	p.mu.Lock()
	defer p.mu.Unlock()
	p.clear()
}

// findRun is the run that is meant: the one with the id, or the only one that is up.
func findRun(id string) (*testnet.Run, error) {
	runs, err := testnet.Runs()
	if err != nil {
		return nil, err
	}
	runs = slices.DeleteFunc(runs, func(r *testnet.Run) bool { return !r.Alive() || id != "" && r.ID != id })
	switch len(runs) {
	case 0:
		return nil, errors.New("no demo is up: sudo tabi demo --keep")
	case 1:
		return runs[0], nil
	}
	var ids []string
	for _, r := range runs {
		ids = append(ids, r.ID)
	}
	return nil, fmt.Errorf("several demos are up: choose one with --run: %s", strings.Join(ids, ", "))
}

func newDemoShellCommand() *cobra.Command {
	var id string
	c := &cobra.Command{
		Use:   "shell HOST [-- COMMAND [ARGUMENT...]]",
		Short: "Enter a host of a demo that is up",
		Example: `  sudo tabi demo shell nezu-hv1
  sudo tabi demo shell detr1 -- tabi show mappings`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := demoShell(cmd.ErrOrStderr(), id, args[0], args[1:]); err != nil {
				return fmt.Errorf("demo shell: %w", err)
			}
			return nil
		},
	}
	c.Flags().StringVar(&id, "run", "", "id of the demo, where several are up")
	return c
}

// demoShell becomes a shell, or another command, in a host's namespace. It returns only if it cannot.
func demoShell(w io.Writer, id, host string, command []string) error {
	r, err := findRun(id)
	if err != nil {
		return err
	}
	h, ok := r.Host(host)
	if !ok {
		var names []string
		for _, h := range r.Hosts {
			names = append(names, h.Name)
		}
		return fmt.Errorf("no host %q; there are: %s", host, strings.Join(names, ", "))
	}
	exe, err := os.Executable()
	if err != nil {
		return err
	}
	all := filepath.Join(r.Dir(), "*", "*.sock")
	socket := h.Socket
	if socket == "" {
		socket = all
	}
	env := append(os.Environ(), "TABI_HOST="+host, "TABI_SOCKET="+socket,
		"PATH="+filepath.Dir(exe)+string(os.PathListSeparator)+os.Getenv("PATH"))
	if len(command) == 0 {
		shell := os.Getenv("SHELL")
		if shell == "" {
			shell = "/bin/sh"
		}
		command = []string{shell}
		env = append(env, "PS1="+host+"# ")
		fmt.Fprintf(w, "%s: %s\n  tabi show counters; tabi show mappings; tabi doctor     this host's daemon\n"+
			"  tabi explain 198.51.100.10 --socket '%s'\n  files in %s; exit leaves\n", host, h.About, all, filepath.Join(r.Dir(), host))
	}
	path, err := lookPath(command[0], filepath.Dir(exe))
	if err != nil {
		return err
	}
	if err := r.AddShell(); err != nil {
		return err
	}
	runtime.LockOSThread() // the thread that enters the namespace is the one that becomes the command
	ns, err := os.Open(filepath.Join("/run/netns", h.Namespace))
	if err != nil {
		return err
	}
	if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("enter %s: %w (this needs root)", h.Namespace, err)
	}
	return unix.Exec(path, command, env)
}

// lookPath finds a command, tabi itself included.
func lookPath(name, dir string) (string, error) {
	if path := filepath.Join(dir, name); !strings.Contains(name, "/") {
		if s, err := os.Stat(path); err == nil && s.Mode().IsRegular() {
			return path, nil
		}
	}
	return exec.LookPath(name)
}

func newDemoLsCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "ls",
		Short: "List the demos on this machine, and their hosts",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			runs, err := testnet.Runs()
			if err != nil {
				return fmt.Errorf("demo ls: %w", err)
			}
			return listRuns(cmd.OutOrStdout(), runs)
		},
	}
}

func listRuns(out io.Writer, runs []*testnet.Run) error {
	t := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	for _, r := range runs {
		state := fmt.Sprintf("up since %s, process %d", r.Started.Format(time.TimeOnly), r.Owner.PID)
		if !r.Alive() {
			state = "dead: tabi demo down removes what it left"
		}
		fmt.Fprintf(t, "%s: %s, %s\n", r.ID, state, r.Dir())
		for _, h := range r.Hosts {
			var processes []string
			for _, p := range r.Processes {
				if p.Host == h.Name {
					processes = append(processes, fmt.Sprintf("%s (pid %d)", p.Name, p.PID))
				}
			}
			fmt.Fprintf(t, "  %s\t%s\t%s\t%s\n", h.Name, h.Namespace, strings.Join(processes, " "), h.About)
		}
	}
	return t.Flush()
}

func newDemoDownCommand() *cobra.Command {
	var id string
	c := &cobra.Command{
		Use:   "down",
		Short: "Take down the demos on this machine that are kept up, and what crashed ones left",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			runs, err := testnet.Runs()
			if err == nil {
				runs = slices.DeleteFunc(runs, func(r *testnet.Run) bool {
					if id != "" {
						return r.ID != id
					}
					return r.Alive() && !r.Kept // somebody is watching it
				})
				err = takeDown(cmd.Context(), cmd.OutOrStdout(), runs)
			}
			if err != nil {
				return fmt.Errorf("demo down: %w", err)
			}
			return nil
		},
	}
	c.Flags().StringVar(&id, "run", "", "only the demo with this id, kept or not")
	return c
}

// takeDown asks the processes that own runs to end, and removes the runs of dead ones.
func takeDown(ctx context.Context, out io.Writer, runs []*testnet.Run) error {
	var errs []error
	for _, r := range runs {
		err := r.Stop(ctx, 30*time.Second)
		if err == nil {
			fmt.Fprintf(out, "%s is down\n", r.ID)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// newDemoJanitorCommand is what a demo starts beside itself: it cleans up should the demo be killed.
func newDemoJanitorCommand() *cobra.Command {
	return &cobra.Command{
		Use:    "janitor DIR",
		Short:  "Wait until standard input ends, then remove what a demo left",
		Hidden: true,
		Args:   cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			return testnet.Janitor(args[0], os.Stdin)
		},
	}
}
