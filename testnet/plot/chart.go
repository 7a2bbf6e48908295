package plot

import "math"

// Chart is panels one above the other, over the same time.
type Chart struct {
	Title    string
	Subtitle string
	// Seconds is how long the time axis is; 0 = until the last point.
	Seconds float64
	Panels  []Panel
	Events  []Event // in order
}

// Panel is series with one scale, which begins at 0.
type Panel struct {
	Label  string // what is measured
	Unit   string // "Mbit/s"
	Series []Series
	// Peaks draws the largest of the values that share a place, instead of their mean.
	Peaks bool
}

// Series is one line of a panel.
type Series struct {
	Name   string
	Points []Point // in order of time
}

// Point is a value at a time, in seconds.
type Point struct{ At, Value float64 }

// Event is something that happened: a vertical line with a label.
type Event struct {
	At    float64 // seconds
	Label string
}

// end is where the time axis ends.
func (c *Chart) end() float64 {
	end := c.Seconds
	if end > 0 {
		return end
	}
	for _, p := range c.Panels {
		for _, s := range p.Series {
			for _, pt := range s.Points {
				end = math.Max(end, pt.At)
			}
		}
	}
	return math.Max(end, 1e-9)
}

// top is the largest value of a panel.
func (p *Panel) top() float64 {
	top := 0.0
	for _, s := range p.Series {
		for _, pt := range s.Points {
			top = math.Max(top, pt.Value)
		}
	}
	return top
}

// columns shares the time from 0 to end among n columns, each of which is the mean of its points, or the largest; where a
// column has none it is as the one before.
func (s *Series) columns(n int, end float64, peaks bool) []float64 {
	out := make([]float64, n)
	count := make([]int, n)
	for _, p := range s.Points {
		if p.At < 0 || p.At > end {
			continue
		}
		i := min(int(p.At/end*float64(n)), n-1)
		if count[i]++; peaks {
			out[i] = math.Max(out[i], p.Value)
		} else {
			out[i] += (p.Value - out[i]) / float64(count[i])
		}
	}
	for i := 1; i < n; i++ {
		if count[i] == 0 {
			out[i] = out[i-1]
		}
	}
	return out
}
