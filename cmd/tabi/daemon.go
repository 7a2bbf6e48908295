package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strconv"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/tabi-lisp/tabi/cmd/internal/admin"
	"github.com/tabi-lisp/tabi/cmd/internal/config"
	"github.com/tabi-lisp/tabi/lisp"
	"github.com/tabi-lisp/tabi/lisp/control"
)

// daemonCommand is the command of one role: read the file, run until a signal comes.
func daemonCommand[T any](role, short string, run func(ctx context.Context, c *T, d *daemon) error, common func(*T) config.Common) *cobra.Command {
	var file string
	c := &cobra.Command{
		Use:     role,
		Short:   short,
		Long:    short + ".\n\nRuns in the foreground until it gets SIGINT or SIGTERM, and logs to standard error.",
		Example: "  tabi config example " + role + " > /etc/tabi/" + role + ".yaml\n  tabi " + role + " --config /etc/tabi/" + role + ".yaml",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := config.LoadAs[T](file)
			if err != nil {
				return fmt.Errorf("%s: %w", role, err)
			}
			d, err := newDaemon(common(cfg))
			if err != nil {
				return fmt.Errorf("%s: %w", role, err)
			}
			if err := run(cmd.Context(), cfg, d); err != nil {
				return fmt.Errorf("%s: %w", role, err)
			}
			return nil
		},
	}
	c.Flags().StringVarP(&file, "config", "c", "/etc/tabi/"+role+".yaml", "configuration file")
	return c
}

// daemon is what all roles need around them.
type daemon struct {
	config.Common
	log   *slog.Logger
	admin *admin.Server
	parts []func(context.Context) error
}

func newDaemon(c config.Common) (*daemon, error) {
	var level slog.Level
	if err := level.UnmarshalText([]byte(c.LogLevel)); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(c.StateDir, 0o700); err != nil {
		return nil, fmt.Errorf("state_dir: %w", err)
	}
	d := &daemon{Common: c, log: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level}))}
	if err := prioritize(); err != nil {
		d.log.Warn("running at ordinary priority", "err", err)
	}
	return d, nil
}

// prioritize puts this process before ordinary ones: a control plane that waits for the processor behind
// guests, builds or statistics loses packets in the moment in which it is needed. Priority belongs to
// threads; those that are made later inherit it.
func prioritize() error {
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return err
	}
	for _, t := range tasks {
		tid, err := strconv.Atoi(t.Name())
		if err != nil {
			continue
		}
		// A short slice lets a thread that wakes up preempt one with a longer slice; it is for Linux 6.12 and newer.
		err = unix.SchedSetAttr(tid, &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_NORMAL, Nice: daemonNice, Runtime: daemonSlice}, 0)
		if errors.Is(err, unix.EINVAL) {
			err = unix.Setpriority(unix.PRIO_PROCESS, tid, daemonNice)
		}
		if err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("set priority: %w", err)
		}
	}
	return nil
}

const (
	// daemonNice is below that of ordinary processes (0) and above that of what must not wait at all (-20).
	daemonNice = -10
	// daemonSlice is in nanoseconds, the least that the kernel grants.
	daemonSlice = 100_000
)

// part adds something that runs as long as the daemon; the first that fails ends it.
func (d *daemon) part(name string, run func(context.Context) error) {
	d.parts = append(d.parts, func(ctx context.Context) error {
		if err := run(ctx); err != nil && ctx.Err() == nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		return nil
	})
}

// serve adds the admin socket; extra is served beside it.
func (d *daemon) serve(shown admin.Daemon, extra http.Handler) {
	d.admin = admin.NewServer(d.Socket, admin.About{Role: d.Role, Name: d.Name, PID: os.Getpid(), Started: time.Now(), Version: version()}, shown, extra)
	d.part("admin", d.admin.Run)
}

// listen adds an HTTP API on TCP; an invalid address means none.
func (d *daemon) listen(ctx context.Context, at netip.AddrPort, h http.Handler) error {
	if !at.IsValid() {
		return nil
	}
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", at.String())
	if err != nil {
		return fmt.Errorf("api: %w", err)
	}
	d.part("api", func(ctx context.Context) error { return admin.Serve(ctx, l, h) })
	return nil
}

// endpoint opens UDP port 4342 on each address.
func (d *daemon) endpoint(ctx context.Context, addrs ...netip.Addr) (*control.Endpoint, error) {
	var at []netip.AddrPort
	for _, a := range addrs {
		at = append(at, netip.AddrPortFrom(a, lisp.ControlPort))
	}
	conns, err := control.Listen(ctx, at...)
	if err != nil {
		return nil, err
	}
	return control.New(d.log, conns...), nil
}

// run runs all parts until ctx ends or one of them fails.
func (d *daemon) run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	for _, p := range d.parts {
		g.Go(func() error { return p(ctx) })
	}
	d.admin.Ready()
	d.log.Info("running", "role", d.Role, "name", d.Name, "version", version())
	err := g.Wait()
	d.log.Info("stopped", "role", d.Role, "name", d.Name)
	if errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}
