package plot

import (
	"bytes"
	"fmt"
	"strings"
	"unicode/utf8"
)

// Sizes of the drawing, in pixels.
const (
	svgWidth   = 960
	marginLeft = 70
	marginEnd  = 24
	panelTall  = 210
	panelGap   = 46
	eventRow   = 17
	charWide   = 6.6 // of a label in its size
)

// svgStyle is dark on light, and light on dark where the page is dark.
const svgStyle = `<style>
text{font-family:system-ui,-apple-system,"Segoe UI","DejaVu Sans",sans-serif;font-size:12px;fill:#333}
.bg{fill:#fff}.title{font-size:18px;font-weight:600;fill:#111}.sub{fill:#666}
.key,.what{paint-order:stroke;stroke:#fff;stroke-width:5px;stroke-linejoin:round}.grid{stroke:#ddd;stroke-width:1}.axis{stroke:#888;stroke-width:1}
.event{stroke:#8a1253;stroke-width:1.2;stroke-dasharray:4 3}.what{fill:#8a1253}
.line{fill:none;stroke-width:2;stroke-linejoin:round}.area{stroke:none;opacity:.13}
.s0{stroke:#0063a6}.f0{fill:#0063a6}.s1{stroke:#d15400}.f1{fill:#d15400}.s2{stroke:#147a3c}.f2{fill:#147a3c}.s3{stroke:#7a3fb0}.f3{fill:#7a3fb0}
@media (prefers-color-scheme:dark){
text{fill:#ccc}.key,.what{stroke:#14171c}.bg{fill:#14171c}.title{fill:#f2f2f2}.sub{fill:#999}
.grid{stroke:#2c323a}.axis{stroke:#77808c}
.event{stroke:#ff7ac0}.what{fill:#ff7ac0}.area{opacity:.2}
.s0{stroke:#5cb6ff}.f0{fill:#5cb6ff}.s1{stroke:#ffa14d}.f1{fill:#ffa14d}.s2{stroke:#5fd08a}.f2{fill:#5fd08a}.s3{stroke:#c59bff}.f3{fill:#c59bff}
}
</style>
`

// colours is how many classes of colour the style has.
const colours = 4

// SVG draws the chart as a file.
func (c *Chart) SVG() []byte {
	rows, depth := c.eventRows()
	head := 66 + depth*eventRow + 14
	height := head + len(c.Panels)*(panelTall+panelGap)
	right := float64(svgWidth - marginEnd)
	time := newAxis(c.end(), 12)
	x := func(at float64) float64 { return marginLeft + at/c.end()*(right-marginLeft) }

	var b bytes.Buffer
	f := func(format string, a ...any) { fmt.Fprintf(&b, format, a...) }
	f(`<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" width="%d" height="%d" role="img" aria-label="%s">`+"\n", svgWidth, height, svgWidth, height, escape(c.Title))
	b.WriteString(svgStyle)
	f(`<rect class="bg" width="%d" height="%d"/>`+"\n", svgWidth, height)
	f(`<text class="title" x="%d" y="30">%s</text>`+"\n", marginLeft, escape(c.Title))
	f(`<text class="sub" x="%d" y="50">%s</text>`+"\n", marginLeft, escape(c.Subtitle))

	bottom := float64(height - panelGap)
	for i, e := range c.Events { // lines first: a label may cross the line of another
		f(`<line class="event" x1="%.1f" y1="%.1f" x2="%.1f" y2="%.1f"/>`+"\n", x(e.At), 66+float64(rows[i]*eventRow), x(e.At), bottom)
	}
	for i, e := range c.Events {
		anchor, dx := "start", 5.0
		if x(e.At)+dx+charWide*float64(utf8.RuneCountInString(e.Label)) > svgWidth-4 {
			anchor, dx = "end", -5
		}
		f(`<text class="what" x="%.1f" y="%.1f" text-anchor="%s">%s</text>`+"\n", x(e.At)+dx, 76+float64(rows[i]*eventRow), anchor, escape(e.Label))
	}

	for i, p := range c.Panels {
		top := float64(head + i*(panelTall+panelGap))
		scale := newAxis(p.top(), 6)
		y := func(v float64) float64 { return top + panelTall - v/scale.end()*panelTall }
		for k := range scale.n + 1 {
			v := y(scale.step * float64(k))
			f(`<line class="grid" x1="%d" y1="%.1f" x2="%.1f" y2="%.1f"/><text x="%d" y="%.1f" text-anchor="end">%s</text>`+"\n",
				marginLeft, v, right, v, marginLeft-8, v+4, scale.label(k))
		}
		f(`<text x="18" y="%.1f" text-anchor="middle" transform="rotate(-90 18 %.1f)">%s</text>`+"\n", top+panelTall/2, top+panelTall/2, escape(p.Label+", "+p.Unit))
		for k := range time.n + 1 {
			if at := time.step * float64(k); at <= c.end() {
				f(`<line class="axis" x1="%.1f" y1="%.1f" x2="%.1f" y2="%.1f"/><text x="%.1f" y="%.1f" text-anchor="middle">%s</text>`+"\n",
					x(at), top+panelTall, x(at), top+panelTall+4, x(at), top+panelTall+17, time.label(k)+" s")
			}
		}
		f(`<line class="axis" x1="%d" y1="%.1f" x2="%.1f" y2="%.1f"/>`+"\n", marginLeft, top+panelTall, right, top+panelTall)
		for n, s := range p.Series {
			drawSeries(f, s, n%colours, c.end(), x, y)
		}
		at := float64(marginLeft)
		for n, s := range p.Series {
			f(`<rect class="f%d" x="%.1f" y="%.1f" width="14" height="4" rx="2"/><text class="key" x="%.1f" y="%.1f">%s</text>`+"\n",
				n%colours, at+8, top-10, at+27, top-5, escape(s.Name))
			at += 45 + charWide*float64(utf8.RuneCountInString(s.Name))
		}
	}
	f("</svg>\n")
	return b.Bytes()
}

// drawSeries draws a line, and what is below it.
func drawSeries(f func(string, ...any), s Series, colour int, end float64, x, y func(float64) float64) {
	var line strings.Builder
	first, last := 0.0, 0.0
	n := 0
	for _, p := range s.Points {
		if p.At < 0 || p.At > end {
			continue
		}
		if n++; n == 1 {
			first = x(p.At)
		}
		last = x(p.At)
		fmt.Fprintf(&line, "%.1f,%.1f ", last, y(p.Value))
	}
	if n == 0 {
		return
	}
	points := strings.TrimSpace(line.String())
	f(`<polygon class="area f%d" points="%.1f,%.1f %s %.1f,%.1f"/><polyline class="line s%d" points="%s"/>`+"\n",
		colour, first, y(0), points, last, y(0), colour, points)
}

// eventRows gives each event a row for its label, so that none covers another, and says how many rows there are.
func (c *Chart) eventRows() (rows []int, depth int) {
	var free []float64 // where each row is free from
	for _, e := range c.Events {
		wide := charWide*float64(utf8.RuneCountInString(e.Label)) + 16
		from := marginLeft + e.At/c.end()*(svgWidth-marginEnd-marginLeft)
		if from+wide > svgWidth {
			from -= wide
		}
		row := 0
		for row < len(free) && free[row] > from {
			row++
		}
		if row == len(free) {
			free = append(free, 0)
		}
		free[row] = from + wide
		rows = append(rows, row)
	}
	return rows, len(free)
}

// escape makes text safe inside an SVG file.
func escape(s string) string {
	return strings.NewReplacer("&", "&amp;", "<", "&lt;", ">", "&gt;", `"`, "&quot;").Replace(s)
}
