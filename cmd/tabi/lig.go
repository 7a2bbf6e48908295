package main

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"time"

	"github.com/spf13/cobra"

	"github.com/tabi-lisp/tabi/cmd/internal/table"
	"github.com/tabi-lisp/tabi/lisp"
)

type ligOptions struct {
	resolver string
	source   string
	timeout  time.Duration
	tries    int
	json     bool
}

func newLigCommand() *cobra.Command {
	var o ligOptions
	c := &cobra.Command{
		Use:   "lig EID",
		Short: "Ask a Map-Resolver for the mapping of an EID (RFC 6835)",
		Example: `  tabi lig 198.51.100.10 --resolver 192.0.2.53
  tabi lig '[7]2001:db8::10' -m 2001:db8:53::1 --json`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			e, err := lisp.ParseEID(args[0])
			if err != nil {
				return fmt.Errorf("lig: %w", err)
			}
			return lig(cmd.Context(), cmd.OutOrStdout(), o, e)
		},
	}
	c.Flags().StringVarP(&o.resolver, "resolver", "m", "", "address of the Map-Resolver (required)")
	c.Flags().StringVar(&o.source, "source", "", "own address to ask from (default: what routing says)")
	c.Flags().DurationVarP(&o.timeout, "timeout", "t", time.Second, "how long to wait for each answer")
	c.Flags().IntVarP(&o.tries, "count", "c", 3, "how often to ask")
	c.Flags().BoolVar(&o.json, "json", false, "print JSON")
	c.MarkFlagRequired("resolver")
	return c
}

type ligAnswer struct {
	EID     lisp.EID       `json:"eid"`
	From    netip.AddrPort `json:"from"`
	RTT     float64        `json:"rtt_ms"`
	Records []lisp.Mapping `json:"records"`
}

func lig(ctx context.Context, w io.Writer, o ligOptions, e lisp.EID) error {
	server, err := netip.ParseAddr(o.resolver)
	if err != nil {
		return fmt.Errorf("lig: resolver %q is not an address", o.resolver)
	}
	source := netip.Addr{}
	if o.source != "" {
		if source, err = netip.ParseAddr(o.source); err != nil {
			return fmt.Errorf("lig: source %q is not an address", o.source)
		}
	} else if source, err = sourceFor(server); err != nil {
		return fmt.Errorf("lig: no route to the Map-Resolver: %w", err)
	}
	conn, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(source, 0)))
	if err != nil {
		return fmt.Errorf("lig: %w", err)
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	local := netip.AddrPortFrom(source, conn.LocalAddr().(*net.UDPAddr).AddrPort().Port())
	for range o.tries {
		a, err := ask(conn, local, netip.AddrPortFrom(server, lisp.ControlPort), e, o.timeout)
		if errors.Is(err, errNoAnswer) && ctx.Err() == nil {
			continue
		}
		if err != nil {
			return fmt.Errorf("lig: %w", err)
		}
		return printLig(w, a, o.json)
	}
	return fmt.Errorf("lig: %w from %s in %d tries of %s; is it a Map-Resolver, and does UDP port %d pass?", errNoAnswer, server, o.tries, o.timeout, lisp.ControlPort)
}

var errNoAnswer = errors.New("no answer")

// ask sends one encapsulated Map-Request and waits for its Map-Reply.
func ask(conn *net.UDPConn, local, server netip.AddrPort, e lisp.EID, timeout time.Duration) (ligAnswer, error) {
	var nb [8]byte
	rand.Read(nb[:])
	nonce := binary.BigEndian.Uint64(nb[:])
	inner, err := lisp.Append(nil, &lisp.MapRequest{
		Nonce: nonce, ITRRLOCs: []netip.Addr{local.Addr()}, Records: []lisp.RequestRecord{{EID: e}},
	})
	if err != nil {
		return ligAnswer{}, err
	}
	// The inner header must be of one family (RFC 9301 section 5.8); an EID of the other one stands only
	// in the record.
	dest := e.Prefix.Addr()
	if dest.Is4() != local.Addr().Is4() {
		dest = server.Addr()
	}
	b, err := lisp.Append(nil, &lisp.ECM{Source: local, Dest: netip.AddrPortFrom(dest, lisp.ControlPort), Inner: inner})
	if err != nil {
		return ligAnswer{}, err
	}
	start := time.Now()
	if _, err := conn.WriteToUDPAddrPort(b, server); err != nil {
		return ligAnswer{}, err
	}
	conn.SetReadDeadline(start.Add(timeout))
	buf := make([]byte, 65536)
	for {
		n, from, err := conn.ReadFromUDPAddrPort(buf)
		if err != nil {
			var ne net.Error
			if errors.As(err, &ne) && ne.Timeout() {
				err = errNoAnswer
			}
			return ligAnswer{}, err
		}
		m, err := lisp.Decode(buf[:n])
		if err != nil {
			continue
		}
		if r, ok := m.(*lisp.MapReply); ok && r.Nonce == nonce {
			return ligAnswer{EID: e, From: from, RTT: float64(time.Since(start).Microseconds()) / 1000, Records: r.Records}, nil
		}
	}
}

func printLig(w io.Writer, a ligAnswer, asJSON bool) error {
	if asJSON {
		return printJSON(w, a)
	}
	fmt.Fprintf(w, "Map-Reply for %s from %s in %.1f ms\n", a.EID, a.From.Addr().Unmap(), a.RTT)
	type row struct {
		EID      lisp.EID       `json:"eid"`
		TTL      string         `json:"ttl"`
		Version  lisp.Version   `json:"version"`
		Says     string         `json:"says"`
		Locators []lisp.Locator `json:"locators"`
	}
	var rows []row
	for _, m := range a.Records {
		says := "not authoritative"
		if m.Authoritative {
			says = "authoritative"
		}
		if m.Negative() {
			says = m.Action.String()
		}
		rows = append(rows, row{m.EID, m.TTL.Duration().String(), m.Version, says, m.Locators})
	}
	b, err := json.Marshal(rows)
	if err != nil {
		return err
	}
	return table.Write(w, b)
}

// sourceFor is the address that the kernel would send from; nothing is sent.
func sourceFor(to netip.Addr) (netip.Addr, error) {
	c, err := net.Dial("udp", netip.AddrPortFrom(to, lisp.ControlPort).String())
	if err != nil {
		return netip.Addr{}, err
	}
	defer c.Close()
	return c.LocalAddr().(*net.UDPAddr).AddrPort().Addr().Unmap(), nil
}
