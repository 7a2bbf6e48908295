// Package bench measures: the data plane beside plain routing and the kernel's own tunnel, and the way
// of a mapping from a Map-Register to the anchors' kernels. Everything is compared within one run, in
// interleaved rounds; what counts are ratios of medians.
package bench

import (
	"cmp"
	"slices"
)

// Sample is one figure of several rounds.
type Sample struct {
	Rounds []float64 `json:"rounds"`
	Median float64   `json:"median"`
	Min    float64   `json:"min"`
	Max    float64   `json:"max"`
}

func (s *Sample) add(v float64) {
	s.Rounds = append(s.Rounds, v)
	sorted := slices.Sorted(slices.Values(s.Rounds))
	s.Median, s.Min, s.Max = quantile(sorted, 0.5), sorted[0], sorted[len(sorted)-1]
}

// quantile of values that are sorted.
func quantile[T cmp.Ordered](sorted []T, q float64) T {
	var zero T
	if len(sorted) == 0 {
		return zero
	}
	return sorted[min(int(q*float64(len(sorted))), len(sorted)-1)]
}
