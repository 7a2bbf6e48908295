package plot

import (
	"encoding/xml"
	"errors"
	"io"
	"math"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// broadcast is a chart as the demo draws it.
func broadcast() *Chart {
	c := &Chart{Title: "Koshien <live>", Subtitle: "5000 viewers & two D-ETRs", Seconds: 60,
		Panels: []Panel{{Label: "through each D-ETR", Unit: "Mbit/s", Series: []Series{{Name: "Tokyo"}, {Name: "Osaka"}}},
			{Label: "longest wait", Unit: "ms", Peaks: true, Series: []Series{{Name: "any viewer"}}}},
		Events: []Event{{10, "the VM moves Tokyo -> Hokuriku"}, {12, "the Osaka D-ETR is killed"}, {58, "a late thing with a long label"}}}
	for i := range 120 {
		at := float64(i) / 2
		v := at * 2
		osaka := v
		if at > 12 {
			v, osaka = v*2, 0
		}
		c.Panels[0].Series[0].Points = append(c.Panels[0].Series[0].Points, Point{at, v})
		c.Panels[0].Series[1].Points = append(c.Panels[0].Series[1].Points, Point{at, osaka})
		if i%2 == 0 {
			c.Panels[1].Series[0].Points = append(c.Panels[1].Series[0].Points, Point{at, 5 + 20*math.Exp(-math.Abs(at-12))})
		}
	}
	return c
}

func TestText(t *testing.T) {
	c := &Chart{Seconds: 10, Panels: []Panel{{Label: "load", Unit: "Mbit/s", Series: []Series{{Name: "a"}}}}, Events: []Event{{5, "half"}}}
	for i := range 10 {
		c.Panels[0].Series[0].Points = append(c.Panels[0].Series[0].Points, Point{float64(i) + 0.5, float64(i * 10)})
	}
	want := `     load, Mbit/s: a
100 ┤                 ┊               ▃▃
    ┤                 ┊        ▂▂▂▆▆▆▆██
    ┤                 ┊    ▅▅▅▅█████████
 50 ┤               ▃▃▃▃████████████████
    ┤        ▂▂▂▂▆▆▆████████████████████
    ┤     ▅▅▅███████████████████████████
  0 ┼┴────────────────┴─────────────────
     0 s             5 s
                      A
     A    5.0 s  half
`
	got := c.Text(41)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	for line := range strings.Lines(got) {
		if n := len([]rune(strings.TrimRight(line, "\n"))); n > 41 {
			t.Errorf("%d columns: %s", n, line)
		}
	}
}

// The file is XML, its labels are whole, and no two of them share a place.
func TestSVG(t *testing.T) {
	c := broadcast()
	svg := c.SVG()
	var texts []string
	for d := xml.NewDecoder(strings.NewReader(string(svg))); ; {
		tok, err := d.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatalf("%v in\n%s", err, svg)
		}
		if b, ok := tok.(xml.CharData); ok && strings.TrimSpace(string(b)) != "" {
			texts = append(texts, string(b))
		}
	}
	all := strings.Join(texts, "\n")
	for _, want := range []string{"Koshien <live>", "5000 viewers & two D-ETRs", "through each D-ETR, Mbit/s", "longest wait, ms", "Tokyo", "Osaka", "any viewer",
		"the Osaka D-ETR is killed", "a late thing with a long label", "60 s", "200"} {
		if !strings.Contains(all, want) {
			t.Errorf("no %q in %q", want, texts)
		}
	}
	if !strings.Contains(string(svg), "prefers-color-scheme:dark") {
		t.Error("nothing for dark pages")
	}
	rows, depth := c.eventRows()
	if diff := cmp.Diff([]int{0, 1, 0}, rows); diff != "" || depth != 2 {
		t.Error(diff, depth)
	}
}

func TestAxis(t *testing.T) {
	for _, test := range []struct {
		top  float64
		most int
		want axis
		last string
	}{
		{0, 5, axis{1, 1}, "1"},
		{1, 5, axis{0.2, 5}, "1"},
		{90, 4, axis{50, 2}, "100"},
		{61, 12, axis{10, 7}, "70"},
		{0.031, 6, axis{0.01, 4}, "0.04"},
		{1234, 6, axis{500, 3}, "1500"},
		{100, 5, axis{20, 5}, "100"},
		{math.NaN(), 5, axis{1, 1}, "1"},
	} {
		got := newAxis(test.top, test.most)
		if math.Abs(got.step-test.want.step) > 1e-9 || got.n != test.want.n || got.label(got.n) != test.last {
			t.Errorf("%v in %d: %+v, ends at %s", test.top, test.most, got, got.label(got.n))
		}
	}
}

func TestColumns(t *testing.T) {
	s := Series{Points: []Point{{0, 1}, {0.1, 3}, {2.5, 10}, {9.9, 4}, {-1, 99}, {11, 99}}}
	if diff := cmp.Diff([]float64{2, 10, 10, 10, 4}, s.columns(5, 10, false)); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]float64{3, 10, 10, 10, 4}, s.columns(5, 10, true)); diff != "" {
		t.Error(diff)
	}
}

// A chart of nothing is drawn as well.
func TestEmpty(t *testing.T) {
	c := &Chart{Panels: []Panel{{Series: []Series{{Name: "none"}}}}}
	if c.Text(60) == "" || len(c.SVG()) == 0 {
		t.Error("nothing drawn")
	}
}
