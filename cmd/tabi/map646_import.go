package main

import (
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/tabi-lisp/tabi/cmd/internal/config"
	"github.com/tabi-lisp/tabi/cmd/internal/map646conf"
	"github.com/tabi-lisp/tabi/controller"
)

// What became of a line.
const (
	lineAdded   = "added"
	lineWould   = "would-add" // a dry run
	lineHeld    = "not-added" // nothing is wrong with it, but with others
	lineExists  = "exists"
	lineRefused = "refused"
	lineRead    = "read" // an include
	linePool    = "pool" // a mapping-prefix
)

// importLine is a line of the file, and what became of it.
type importLine struct {
	File    string `json:"file"`
	Line    int    `json:"line"`
	Text    string `json:"text"`
	Result  string `json:"result"`
	Service string `json:"service,omitempty"` // service address
	EID     string `json:"eid,omitempty"`
	VM      string `json:"vm,omitempty"`
	Pool    string `json:"pool,omitempty"`
	Why     string `json:"why,omitempty"` // it is refused, or what else is to know
}

// importReport is what `tabi map646 import --json` prints.
type importReport struct {
	File    string        `json:"file"`
	DryRun  bool          `json:"dry_run"`
	Lines   []*importLine `json:"lines"`
	Added   int           `json:"added"` // in a dry run: would be
	Exists  int           `json:"exists"`
	Refused int           `json:"refused"`
	Applied bool          `json:"applied"`        // false: nothing has changed
	Pool    string        `json:"pool,omitempty"` // belongs into detr.yaml
}

func newMap646ImportCommand() *cobra.Command {
	var api controllerClient
	var dry, skip bool
	var anchor string
	c := &cobra.Command{
		Use: "import FILE", Short: "Take the original map646's configuration over, and say what became of every line", Args: cobra.ExactArgs(1),
		Long: `Take the configuration file of the original map646 over, with the files that it includes: its map-static and map66-static
lines become service addresses, and what it says of every line is printed. Their IPv6 addresses must be EIDs of VMs that the
controller knows.

Every line is looked at before the first is carried out. If one is refused nothing is added, unless --skip-refused is given;
the exit status is 2 then. A line whose service address is there already is no error, so that the command may be repeated.

A mapping-prefix is the pool prefix, which stands in the configuration of the D-ETRs: with --detr it is compared with that
file, and so is every address with its service prefixes; without, what belongs there is printed.`,
		Example: `  tabi map646 import /etc/map646.conf --dry-run
  tabi map646 import /etc/map646.conf --detr /etc/tabi/detr.yaml`,
		RunE: func(cmd *cobra.Command, args []string) error {
			lines, err := map646conf.Read(args[0])
			if err != nil {
				return err
			}
			var d *config.DETR
			if anchor != "" {
				if d, err = loadDETR(anchor); err != nil {
					return err
				}
			}
			im := newImporter(lines, args[0], dry, skip)
			if d != nil {
				im.compare(d, anchor)
			}
			bad := im.refused() > 0
			req := im.request()
			req.DryRun, req.Partial = dry || bad && !skip, skip
			var res controller.ServicesResult
			if _, err := api.do(cmd.Context(), "POST", "/v1/services", req, &res); err != nil {
				return err
			}
			if err := im.answer(res); err != nil {
				return err
			}
			if err := im.print(cmd.OutOrStdout(), api.json, anchor); err != nil {
				return err
			}
			if im.Refused == 0 {
				return nil
			}
			what := "nothing was added"
			if dry {
				what = "nothing would be added"
			}
			if skip {
				what = "the others were added"
				if dry {
					what = "the others would be added"
				}
			}
			return &exitError{exitRefused, fmt.Errorf("map646 import: %s: %s refused; %s", args[0], countOf(im.Refused, "line"), what)}
		},
	}
	api.flags(c)
	f := c.Flags()
	f.BoolVar(&dry, "dry-run", false, "say what would be done, and do nothing")
	f.BoolVar(&skip, "skip-refused", false, "add what can be added, although other lines are refused")
	f.StringVar(&anchor, "detr", "", "configuration file of a D-ETR, to compare with")
	return c
}

// countOf is a number of things.
func countOf(n int, thing string) string {
	if n == 1 {
		return "1 " + thing
	}
	return fmt.Sprintf("%d %ss", n, thing)
}

func loadDETR(path string) (*config.DETR, error) {
	v, err := config.Load(path)
	if err != nil {
		return nil, err
	}
	d, ok := v.(*config.DETR)
	if !ok {
		return nil, fmt.Errorf("--detr %s: is not the configuration of a D-ETR", path)
	}
	return d, nil
}

// importer carries an import out.
type importer struct {
	importReport
	asked []*importLine // those that the controller is asked to add, in order
	addrs map[*importLine]netip.Addr
	skip  bool
}

func newImporter(lines []*map646conf.Line, file string, dry, skip bool) *importer {
	im := &importer{importReport: importReport{File: file, DryRun: dry, Lines: []*importLine{}}, addrs: map[*importLine]netip.Addr{}, skip: skip}
	for _, l := range lines {
		o := &importLine{File: l.File, Line: l.Number, Text: l.Text, Why: l.Note}
		im.Lines = append(im.Lines, o)
		if l.Outside.IsValid() && l.Inside.IsValid() {
			o.Service, o.EID = l.Outside.String(), l.Inside.String()
		}
		switch {
		case l.Error != nil:
			o.refuse(l.Error.Error())
		case l.Kind == map646conf.Include:
			o.Result = lineRead
		case l.Kind == map646conf.Prefix:
			o.Result, o.Pool = linePool, l.Pool.String()
			im.Pool = o.Pool
		case l.Same != nil:
			o.Result = lineExists
			o.note("the same as " + l.Same.At())
		default:
			im.addrs[o] = l.Outside
			im.asked = append(im.asked, o)
		}
	}
	return im
}

func (o *importLine) refuse(why string) {
	o.Result = lineRefused
	o.note(why)
}

func (o *importLine) note(s string) {
	if o.Why != "" {
		s += "; " + o.Why
	}
	o.Why = s
}

func (im *importer) refused() (n int) {
	for _, o := range im.Lines {
		if o.Result == lineRefused {
			n++
		}
	}
	return n
}

// compare looks whether a D-ETR serves what the file says.
func (im *importer) compare(d *config.DETR, path string) {
	s := d.Anchor.Services
	for _, o := range im.Lines {
		a, static := im.addrs[o]
		switch {
		case o.Result == linePool && !s.Pool.IsValid():
			o.refuse(fmt.Sprintf("%s has no pool prefix: want services.pool %q", path, o.Pool))
		case o.Result == linePool && s.Pool.String() != o.Pool:
			o.refuse(fmt.Sprintf("%s has the pool prefix %s", path, s.Pool))
		case o.Result == linePool:
			o.note("as in " + path)
		case static && !slices.ContainsFunc(s.Prefixes, func(p netip.Prefix) bool { return p.Contains(a) }):
			o.note(fmt.Sprintf("in no service prefix of %s: D-ETRs pass over it until it is in one", path))
		}
	}
}

func (im *importer) request() controller.ServicesRequest {
	req := controller.ServicesRequest{Services: []controller.ServiceRequest{}}
	for _, o := range im.asked {
		req.Services = append(req.Services, controller.ServiceRequest{Outside: o.Service, Inside: o.EID})
	}
	return req
}

// answer takes what the controller has said.
func (im *importer) answer(res controller.ServicesResult) error {
	if len(res.Results) != len(im.asked) {
		return fmt.Errorf("map646 import: the controller answers of %d services, and was asked of %d", len(res.Results), len(im.asked))
	}
	im.Applied = res.Applied
	for i, o := range im.asked {
		r := res.Results[i]
		o.VM = r.VM
		switch r.Result {
		case controller.ResultRefused:
			o.refuse(r.Error)
		case controller.ResultExists:
			o.Result = lineExists
		case controller.ResultAdded:
			o.Result = lineAdded
		default:
			return fmt.Errorf("map646 import: the controller answers %q of %s", r.Result, o.Service)
		}
	}
	im.Refused = im.refused()
	for _, o := range im.Lines {
		switch {
		case o.Result == lineExists:
			im.Exists++
		case o.Result != lineAdded:
		case res.Applied:
			im.Added++
		case im.DryRun && (im.Refused == 0 || im.skip):
			o.Result = lineWould
			im.Added++
		default:
			o.Result = lineHeld
		}
	}
	return nil
}

// resultTexts are the results as they are printed.
var resultTexts = map[string]string{
	lineAdded: "added", lineWould: "would be added", lineHeld: "not added, because others are refused", lineExists: "already there", lineRead: "read",
}

func (im *importer) print(w io.Writer, asJSON bool, anchor string) error {
	if asJSON {
		return printJSON(w, im.importReport)
	}
	tw := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	for _, o := range im.Lines {
		var text string
		switch o.Result {
		case lineRefused:
			text = "refused because " + o.Why
		case linePool:
			text = strings.TrimSuffix("pool prefix "+o.Pool+"; "+o.Why, "; ")
		default:
			text = resultTexts[o.Result]
			if o.VM != "" {
				text += " (vm " + o.VM + ")"
			}
			if o.Why != "" {
				text += "; " + o.Why
			}
		}
		fmt.Fprintf(tw, "%s:%d\t%s\t%s\n", o.File, o.Line, o.Text, text)
	}
	if err := tw.Flush(); err != nil {
		return err
	}
	would := ""
	if im.DryRun {
		would = "would be "
	}
	fmt.Fprintf(w, "\nservice addresses: %d %sadded, %d there already, %d refused\n", im.Added, would, im.Exists, im.Refused)
	if im.Pool != "" && anchor == "" {
		fmt.Fprintf(w, "In the detr.yaml of every D-ETR, under services:   pool: %q\n", im.Pool)
	}
	return nil
}
