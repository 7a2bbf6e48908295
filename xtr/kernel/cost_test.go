package kernel

import (
	"strings"
	"testing"
)

// TestProgramCost: every program does what is measured of it, in a table of prefixes and in one of hosts.
func TestProgramCost(t *testing.T) {
	all, err := ProgramCost(t.Context(), 1, 2000)
	if err != nil {
		t.Fatal(err)
	}
	translations, err := TranslationCost(t.Context(), 1, 2000)
	if err != nil {
		t.Fatal(err)
	}
	if len(all) != 14 || len(translations) != 8 {
		t.Fatalf("%d programs were measured, and %d translations", len(all), len(translations))
	}
	for _, p := range append(all, translations...) {
		for _, c := range p.Cost {
			if c.Nanoseconds <= 0 || c.Nanoseconds > 1e6 {
				t.Errorf("%s with %d mappings: %.0f ns", p.Program, c.Mappings, c.Nanoseconds)
			}
		}
	}
}

// BenchmarkPrograms reports nanoseconds per packet for each program and size of the table.
func BenchmarkPrograms(b *testing.B) {
	sizes := []int{1, 30, 10_000, 1_000_000}
	for b.Loop() {
		all, err := ProgramCost(b.Context(), sizes...)
		if err != nil {
			b.Fatal(err)
		}
		translations, err := TranslationCost(b.Context(), sizes...)
		if err != nil {
			b.Fatal(err)
		}
		for _, p := range append(all, translations...) {
			for i, c := range p.Cost {
				b.ReportMetric(c.Nanoseconds, strings.ReplaceAll(p.Program, " ", "-")+[]string{"-1", "-30", "-10k", "-1M"}[i]+"-ns")
			}
			b.Logf("%-36s %5.0f %5.0f %5.0f %5.0f ns (%.2f)", p.Program, p.Cost[0].Nanoseconds, p.Cost[1].Nanoseconds, p.Cost[2].Nanoseconds,
				p.Cost[3].Nanoseconds, p.Cost[3].Nanoseconds/p.Cost[0].Nanoseconds)
		}
	}
}
