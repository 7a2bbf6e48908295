package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/spf13/cobra"

	"github.com/tabi-lisp/tabi/cmd/internal/admin"
	"github.com/tabi-lisp/tabi/detr"
)

// detrDrain is what the admin socket of a D-ETR has besides: GET, PUT and DELETE /v1/drain.
func detrDrain(x *detr.DETR) http.Handler {
	mux := http.NewServeMux()
	answer := func(w http.ResponseWriter, r *http.Request) {
		s, err := x.Status(r.Context())
		if err != nil {
			admin.Fail(w, http.StatusServiceUnavailable, err)
			return
		}
		admin.Reply(w, s)
	}
	set := func(on bool) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			if err := x.Drain(r.Context(), on); err != nil {
				admin.Fail(w, http.StatusInternalServerError, err)
				return
			}
			answer(w, r)
		}
	}
	mux.HandleFunc("GET /v1/drain", answer)
	mux.HandleFunc("PUT /v1/drain", set(true))
	mux.HandleFunc("DELETE /v1/drain", set(false))
	return mux
}

type drainOptions struct {
	socketOptions
	wait time.Duration
}

// drainPoll is how often a D-ETR is asked how far it is.
const drainPoll = 100 * time.Millisecond

func newDETRDrainCommand() *cobra.Command {
	var o drainOptions
	c := &cobra.Command{
		Use:   "drain",
		Short: "Take a D-ETR out of service without losing a packet",
		Long: `Withdraw everywhere all that the D-ETR on this machine stands for: aggregates and service prefixes in BGP, in
the kernel's routes (OSPF) and at the Map-Servers, so that packets go to the other D-ETRs. What still comes is
forwarded and translated as before. The D-ETR stays drained when it is restarted, until "tabi detr undrain".

Returns when the Map-Servers have confirmed it, or with status 1 when --wait is over and one has not: it forgets the
D-ETR by itself, within minutes. Routers outside may need a little longer; "tabi show services" tells whether anything
still comes.`,
		Example: "  tabi detr drain\n  tabi detr drain --socket /run/tabi/detr.sock --wait 30s",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return setDrain(cmd.Context(), cmd.OutOrStdout(), &o, http.MethodPut, "drained")
		},
	}
	o.flags(c)
	c.Flags().DurationVar(&o.wait, "wait", 10*time.Second, "how long to wait until nobody is known to believe that the D-ETR serves; 0: do not wait")
	return c
}

func newDETRUndrainCommand() *cobra.Command {
	var o drainOptions
	c := &cobra.Command{
		Use:     "undrain",
		Short:   "Put a drained D-ETR into service again",
		Long:    "Announce and register again all that the D-ETR on this machine stands for, as soon as it can serve it.",
		Example: "  tabi detr undrain",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return setDrain(cmd.Context(), cmd.OutOrStdout(), &o, http.MethodDelete, "serving")
		},
	}
	o.flags(c)
	c.Flags().DurationVar(&o.wait, "wait", 10*time.Second, "how long to wait until the D-ETR serves; 0: do not wait")
	return c
}

func newDETRStatusCommand() *cobra.Command {
	var o socketOptions
	c := &cobra.Command{
		Use:     "status",
		Short:   "Say whether a D-ETR serves, is drained, or cannot serve, and why",
		Long:    "Say whether the D-ETR on this machine serves, is drained, or cannot serve, and why.",
		Example: "  tabi detr status\n  tabi detr status --json",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			api, err := detrSocket(cmd.Context(), &o)
			if err != nil {
				return err
			}
			s, err := drainRequest(cmd.Context(), api, http.MethodGet)
			if err != nil {
				return err
			}
			return printDrain(cmd.OutOrStdout(), &o, s)
		},
	}
	o.flags(c)
	return c
}

// detrSocket is the socket of the one D-ETR among the daemons here.
func detrSocket(ctx context.Context, o *socketOptions) (*admin.Client, error) {
	all, err := o.clients()
	if err != nil {
		return nil, fmt.Errorf("detr: %w", err)
	}
	var found []*admin.Client
	var errs []error
	for _, c := range all {
		a, err := c.About(ctx)
		switch {
		case err != nil:
			errs = append(errs, err)
		case a.Role == "detr":
			found = append(found, c)
		default:
			errs = append(errs, fmt.Errorf("%s: a %s", c.Path, a.Role))
		}
	}
	switch len(found) {
	case 0:
		return nil, fmt.Errorf("detr: no D-ETR answers: %w", errors.Join(errs...))
	case 1:
		return found[0], nil
	}
	return nil, fmt.Errorf("detr: %d D-ETRs answer; name one by --socket", len(found))
}

func drainRequest(ctx context.Context, api *admin.Client, method string) (s detr.Status, err error) {
	b, err := api.Do(ctx, method, "/v1/drain")
	if err == nil {
		err = json.Unmarshal(b, &s)
	}
	if err != nil {
		return s, fmt.Errorf("detr: %w", err)
	}
	return s, nil
}

// setDrain drains, or ends that, and waits until the state is the wanted one.
func setDrain(ctx context.Context, w io.Writer, o *drainOptions, method, want string) error {
	api, err := detrSocket(ctx, &o.socketOptions)
	if err != nil {
		return err
	}
	s, err := drainRequest(ctx, api, method)
	if err != nil {
		return err
	}
	there := func() bool { return s.State == want && (want == "serving" || s.Withdrawn) }
	for end := time.Now().Add(o.wait); !there() && time.Now().Before(end); {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(drainPoll):
		}
		if s, err = drainRequest(ctx, api, http.MethodGet); err != nil {
			return err
		}
	}
	if err := printDrain(w, &o.socketOptions, s); err != nil {
		return err
	}
	if !there() && o.wait > 0 {
		return errSilent
	}
	return nil
}

func printDrain(w io.Writer, o *socketOptions, s detr.Status) error {
	if o.json {
		return printJSON(w, s)
	}
	fmt.Fprint(w, s.State)
	if !s.Since.IsZero() {
		fmt.Fprintf(w, " since %s", s.Since.Local().Format("2006-01-02 15:04:05"))
	}
	if s.Why != "" {
		fmt.Fprintf(w, ": %s", s.Why)
	}
	fmt.Fprintln(w)
	switch {
	case s.State != "drained":
	case s.Withdrawn:
		fmt.Fprintln(w, "withdrawn everywhere; what still comes is forwarded")
	default:
		fmt.Fprintf(w, "being withdrawn: %d of %d Map-Servers have not confirmed yet, or a router has not been told\n", s.Registered, s.Servers)
	}
	_, err := fmt.Fprintf(w, "feed %s, data plane %s, registered at %d of %d Map-Servers, %d services translated, %d ignored\n",
		yes(s.Feed, "complete", "not complete"), yes(s.DataPlane, "attached", "not attached"), s.Registered, s.Servers, s.Services, s.Ignored)
	return err
}

func yes(b bool, t, f string) string {
	if b {
		return t
	}
	return f
}
