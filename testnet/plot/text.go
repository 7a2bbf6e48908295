package plot

import (
	"fmt"
	"math"
	"strings"
	"unicode/utf8"
)

// textTall is the height of a series in lines.
const textTall = 6

// blocks are the eighths of a character cell.
var blocks = []rune(" ▁▂▃▄▅▆▇█")

// Text draws the chart for a terminal of so many columns, at least 40, without colours: each series by itself, over the
// scale of its panel. Events are lettered lines, and stand below with their labels.
func (c *Chart) Text(columns int) string {
	label := 0
	for _, p := range c.Panels {
		a := newAxis(p.top(), 4)
		label = max(label, len(a.label(a.n)))
	}
	wide := max(columns, 40) - label - 3
	var b strings.Builder
	marks := c.marks(wide)
	for _, p := range c.Panels {
		scale := newAxis(p.top(), 4)
		for _, s := range p.Series {
			fmt.Fprintf(&b, "%*s  %s\n", label, "", p.Label+", "+p.Unit+": "+s.Name)
			rows := draw(s.columns(wide, c.end(), p.Peaks), scale.end(), marks)
			for i, row := range rows {
				left := ""
				switch i {
				case 0:
					left = scale.label(scale.n)
				case len(rows) / 2:
					if scale.n%2 == 0 {
						left = scale.label(scale.n / 2)
					}
				}
				fmt.Fprintf(&b, "%*s ┤%s\n", label, left, row)
			}
			fmt.Fprintf(&b, "%*s ┼%s\n", label, "0", c.ruler(wide))
		}
		fmt.Fprintf(&b, "%*s  %s\n", label, "", c.times(wide))
	}
	if len(c.Events) > 0 {
		letters := []rune(strings.Repeat(" ", wide))
		for i, e := range c.Events {
			letters[c.column(e.At, wide)] = letter(i)
		}
		fmt.Fprintf(&b, "%*s  %s\n", label, "", strings.TrimRight(string(letters), " "))
		for i, e := range c.Events {
			fmt.Fprintf(&b, "%*s  %c %6.1f s  %s\n", label, "", letter(i), e.At, e.Label)
		}
	}
	return b.String()
}

// letter names event i.
func letter(i int) rune { return rune('A' + i%26) }

// column is where a time is.
func (c *Chart) column(at float64, wide int) int {
	return min(max(int(at/c.end()*float64(wide)), 0), wide-1)
}

// marks are the columns of events.
func (c *Chart) marks(wide int) map[int]bool {
	m := make(map[int]bool)
	for _, e := range c.Events {
		m[c.column(e.At, wide)] = true
	}
	return m
}

// draw draws columns, the highest line first. Events show where a column leaves room.
func draw(columns []float64, top float64, marks map[int]bool) []string {
	rows := make([]string, textTall)
	for r := range rows {
		line := make([]rune, len(columns))
		for i, v := range columns {
			eighths := int(math.Round(v/top*textTall*8)) - (textTall-1-r)*8
			if v > 0 && r == textTall-1 {
				eighths = max(eighths, 1) // little is not nothing
			}
			line[i] = blocks[min(max(eighths, 0), 8)]
			if line[i] == ' ' && marks[i] {
				line[i] = '┊'
			}
		}
		rows[r] = strings.TrimRight(string(line), " ")
	}
	return rows
}

// ruler is the time axis, with its ticks.
func (c *Chart) ruler(wide int) string {
	line := []rune(strings.Repeat("─", wide))
	for _, t := range c.ticks(wide) {
		line[t.column] = '┴'
	}
	return string(line)
}

// times are the numbers below it.
func (c *Chart) times(wide int) string {
	line := []rune(strings.Repeat(" ", wide+8))
	for _, t := range c.ticks(wide) {
		from := max(t.column-utf8.RuneCountInString(t.label)/2, 0)
		copy(line[from:], []rune(t.label))
	}
	return strings.TrimRight(string(line), " ")
}

type tick struct {
	column int
	label  string
}

func (c *Chart) ticks(wide int) (out []tick) {
	a := newAxis(c.end(), max(wide/10, 2))
	for i := range a.n + 1 {
		if at := a.step * float64(i); at < c.end() {
			out = append(out, tick{c.column(at, wide), a.label(i) + " s"})
		}
	}
	return out
}
