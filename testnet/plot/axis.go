package plot

import (
	"math"
	"strconv"
)

// axis is round numbers from 0 to at least a value.
type axis struct {
	step float64
	n    int // steps
}

// newAxis is an axis up to at least top, with at most most steps.
func newAxis(top float64, most int) axis {
	if !(top > 0) {
		return axis{1, 1}
	}
	unit := math.Pow(10, math.Floor(math.Log10(top/float64(most))))
	for _, f := range []float64{1, 2, 5, 10, 20} {
		// What is over by a rounding error is not over.
		if n := math.Ceil(top/(f*unit) - 1e-9); n <= float64(most) {
			return axis{f * unit, max(int(n), 1)}
		}
	}
	return axis{top, 1}
}

// end is the last number.
func (a axis) end() float64 { return a.step * float64(a.n) }

// label is number i as text.
func (a axis) label(i int) string { return number(a.step * float64(i)) }

// number writes a round number without what rounding left of it.
func number(v float64) string {
	return strconv.FormatFloat(math.Round(v*1e6)/1e6, 'f', -1, 64)
}
