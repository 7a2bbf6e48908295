package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/syslog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/tabi-lisp/tabi/cmd/internal/config"
	"github.com/tabi-lisp/tabi/controller"
	"github.com/tabi-lisp/tabi/controller/libvirt"
)

// defaultHookConfig is where the hooks of a hypervisor find whom to tell.
const defaultHookConfig = "/etc/tabi/hook.yaml"

const (
	// maxDomainXML bounds what is read of libvirt's description of a VM, in bytes.
	maxDomainXML = 8 << 20
	// pendingFor is how long an announcement that failed is worth being tried again: then the VM runs here, or the
	// migration has failed.
	pendingFor = 30 * time.Second
)

func newHookLibvirtCommand() *cobra.Command {
	var file string
	c := &cobra.Command{
		Use:   "libvirt OBJECT OPERATION SUB-OPERATION EXTRA",
		Short: "Be libvirt's hook: tell tabi of a VM that is about to arrive here",
		Long: `Be libvirt's hook: tell tabi of a VM that is about to arrive here. libvirt calls it, by way of what
"tabi hook install libvirt" installs, with the domain's XML on standard input.

At "migrate", the first thing that libvirt does on the target of a migration, the VM is announced to the controller,
and if that does not answer in time, to the agent on this hypervisor. What could not be announced is tried again at
"prepare", "start" and "started", which come before memory is copied. All other operations do nothing: no hook is called
at the switch itself, and none in time on the source.

It never delays a migration by more than the configured timeout (700 ms), never fails one (status 0, always), and
prints nothing on standard output, which libvirt would take for another description of the VM. What went wrong is
said once, in syslog and on standard error.`,
		Example: "  virsh dumpxml web | tabi hook libvirt web migrate begin -",
		Args:    cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			h := libvirtHook{args: args, in: cmd.InOrStdin(), file: file, errs: cmd.ErrOrStderr(), syslog: toSyslog}
			h.run(cmd.Context())
			return nil
		},
	}
	c.SetFlagErrorFunc(func(c *cobra.Command, err error) error {
		fmt.Fprintln(c.ErrOrStderr(), "tabi: hook libvirt:", err)
		return nil
	})
	c.Flags().StringVar(&file, "config", defaultHookConfig, "whom to tell; without the file, the agent on this hypervisor")
	return c
}

// libvirtHook is one call by libvirt.
type libvirtHook struct {
	args   []string // object, operation, sub-operation, extra
	in     io.Reader
	file   string // configuration
	errs   io.Writer
	syslog func(failed bool, line string)
}

// run does what is to be done in the time that there is, and says how that went. It never panics.
func (h *libvirtHook) run(ctx context.Context) {
	defer func() {
		if r := recover(); r != nil {
			h.say(fmt.Errorf("panic: %v", r), "")
		}
	}()
	start := time.Now()
	done, err := h.announce(ctx)
	if err != nil || done != "" {
		h.say(err, done+fmt.Sprintf(" in %d ms", time.Since(start).Milliseconds()))
	}
}

func (h *libvirtHook) say(err error, done string) {
	line := "hook libvirt " + strings.Join(h.args, " ") + ": " + done
	if err != nil {
		line = "hook libvirt " + strings.Join(h.args, " ") + ": " + strings.ReplaceAll(err.Error(), "\n", "; ")
		fmt.Fprintln(h.errs, "tabi:", line)
	}
	h.syslog(err != nil, line)
}

// announce returns whom it told of the VM, "" if there was nothing to tell.
func (h *libvirtHook) announce(ctx context.Context) (told string, err error) {
	if len(h.args) < 2 {
		return "", fmt.Errorf("%d arguments, want the VM and the operation", len(h.args))
	}
	vm, operation := h.args[0], h.args[1]
	switch operation {
	case "migrate", "prepare", "start", "started":
	default:
		return "", nil
	}
	cfg, err := config.LoadHook(h.file)
	if err != nil {
		// Some way is better than none: the agent here needs no configuration.
		cfg = config.DefaultHook()
		h.say(fmt.Errorf("%w; only the agent here is told", err), "")
	}
	pending := pendingFile(cfg.StateDir, vm)
	if operation != "migrate" {
		if i, err := os.Stat(pending); err != nil || time.Since(i.ModTime()) > pendingFor {
			return "", nil
		}
	}
	if told, err = h.arriving(ctx, cfg, vm); err == nil {
		_ = os.Remove(pending) // it is not there when all went well at once
		return told, nil
	}
	if mark := markPending(pending); mark != nil {
		err = fmt.Errorf("%w; not tried again: %w", err, mark)
	}
	return "", err
}

// arriving reads what arrives and tells of it.
func (h *libvirtHook) arriving(ctx context.Context, cfg config.Hook, vm string) (told string, err error) {
	ctx, cancel := context.WithTimeout(ctx, cfg.Timeout)
	defer cancel()
	xml, err := readAll(ctx, h.in)
	if err != nil {
		return "", fmt.Errorf("the domain's XML: %w", err)
	}
	guest, err := libvirt.ParseDomain(xml)
	if err != nil && guest.UUID == "" {
		return "", err
	}
	if err != nil {
		h.say(err, "") // the metadata are wrong; what they should say the controller may know
	}
	guest.Name = cmp.Or(guest.Name, vm)
	return tell(ctx, cfg, guest)
}

// pendingFile names the mark of a VM whose announcement is to be tried again. libvirt allows no "/" in names.
func pendingFile(dir, vm string) string { return filepath.Join(dir, "pending-"+filepath.Base(vm)) }

func markPending(path string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return os.WriteFile(path, nil, 0o644)
}

// readAll reads r to its end, or until ctx ends; then the reader is left behind.
func readAll(ctx context.Context, r io.Reader) ([]byte, error) {
	type result struct {
		b   []byte
		err error
	}
	done := make(chan result, 1)
	go func() {
		b, err := io.ReadAll(io.LimitReader(r, maxDomainXML))
		done <- result{b, err}
	}()
	select {
	case r := <-done:
		return r.b, r.err
	case <-ctx.Done():
		return nil, errors.New("does not end in time")
	}
}

// agentAnnouncement is the body of POST /v1/announcements at an agent.
type agentAnnouncement struct {
	VM   string   `json:"vm"`
	UUID string   `json:"uuid,omitempty"`
	MACs []string `json:"macs"`
	EIDs []string `json:"eids"`
}

// tell announces a VM to the controller, and when that fails or takes more than half of the time, to the agent here. It returns
// whom it told.
func tell(ctx context.Context, cfg config.Hook, g controller.Guest) (string, error) {
	macs, eids := []string{}, []string{}
	for _, i := range g.Interfaces {
		if i.MAC != "" {
			macs = append(macs, i.MAC)
		}
	}
	for _, e := range g.EIDs {
		eids = append(eids, e.String())
	}
	var failed error
	if cfg.Controller != "" {
		half, cancel := context.WithTimeout(ctx, cfg.Timeout/2)
		err := post(half, http.DefaultTransport, cfg.Controller, cfg.Token,
			controller.Announcement{VM: g.Name, UUID: g.UUID, MACs: macs, To: cfg.Hypervisor})
		cancel()
		if err == nil {
			return "announced to the controller", nil
		}
		failed = fmt.Errorf("controller: %w", err)
	}
	unix := &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", cfg.AgentSocket)
	}}
	if err := post(ctx, unix, "http://agent", "", agentAnnouncement{VM: g.Name, UUID: g.UUID, MACs: macs, EIDs: eids}); err != nil {
		return "", errors.Join(failed, fmt.Errorf("agent %s: %w", cfg.AgentSocket, err))
	}
	if failed != nil {
		return "announced to the agent only (" + failed.Error() + ")", nil
	}
	return "announced to the agent", nil
}

// post makes one announcement.
func post(ctx context.Context, t http.RoundTripper, base, token string, v any) error {
	body, err := json.Marshal(v)
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, base+"/v1/announcements", bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	resp, err := t.RoundTrip(req)
	if err != nil {
		if ctx.Err() != nil {
			return errors.New("no answer in time")
		}
		return err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxDomainXML))
	if resp.StatusCode < 300 {
		return nil
	}
	var e struct {
		Error string `json:"error"`
	}
	if err != nil || json.Unmarshal(b, &e) != nil || e.Error == "" {
		e.Error = resp.Status
	}
	return errors.New(e.Error)
}

// toSyslog writes one line, if syslog takes it at once: its socket blocks when the log daemon is stuck.
func toSyslog(failed bool, line string) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		w, err := syslog.New(syslog.LOG_DAEMON|syslog.LOG_INFO, "tabi")
		if err != nil {
			return // no log daemon: standard error has it
		}
		defer w.Close()
		if failed {
			_ = w.Warning(line)
		} else {
			_ = w.Info(line)
		}
	}()
	select {
	case <-done:
	case <-time.After(100 * time.Millisecond):
	}
}
