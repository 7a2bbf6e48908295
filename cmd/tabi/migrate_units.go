package main

import (
	"fmt"
	"math"
	"regexp"
	"strconv"
	"time"
)

// Quantities as people write and read them. Rates that are typed are in bits unless they say bytes, as network people
// have it; what is printed says its unit.

var quantity = regexp.MustCompile(`^([0-9]+(?:\.[0-9]+)?) ?([kKMGT]?)(i?)(bit|b|B)?(/s|ps)?$`)

// parseQuantity takes a number and its unit apart; binary says whether a bare k, M, G, T is a power of 1024.
func parseQuantity(s string, binary bool) (n float64, unit string, perSecond, ok bool) {
	m := quantity.FindStringSubmatch(s)
	if m == nil {
		return 0, "", false, false
	}
	n, err := strconv.ParseFloat(m[1], 64)
	if err != nil {
		return 0, "", false, false
	}
	base := 1000.0
	if m[3] != "" || binary && m[4] == "" {
		base = 1024
	}
	if m[3] != "" && m[2] == "" {
		return 0, "", false, false
	}
	for _, p := range []string{"k", "M", "G", "T"} {
		if m[2] == "" {
			break
		}
		n *= base
		if m[2] == p || m[2] == "K" && p == "k" {
			break
		}
	}
	return n, m[4], m[5] != "", true
}

// parseBandwidth reads "100M" (bits a second), "100Mbit/s", "12.5MB/s" (bytes), "12MiB": the result is in bytes a second.
func parseBandwidth(s string) (uint64, error) {
	n, unit, _, ok := parseQuantity(s, false)
	if unit != "B" {
		n /= 8
	}
	if !ok || n >= math.MaxInt64 || n > 0 && n < 1 {
		return 0, fmt.Errorf("%q is no bandwidth: want one such as 100M or 100Mbit/s (bits a second), 12MB/s or 12MiB/s (bytes a second)", s)
	}
	return uint64(n), nil
}

// parseMemory reads "16G" or "16GiB" (powers of 1024) or "16GB" (of 1000): the result is in bytes.
func parseMemory(s string) (uint64, error) {
	n, unit, perSecond, ok := parseQuantity(s, true)
	if !ok || perSecond || unit == "b" || unit == "bit" || n >= math.MaxInt64 {
		return 0, fmt.Errorf("%q is no amount of memory: want one such as 16G or 16GiB (powers of 1024), 16GB (of 1000)", s)
	}
	return uint64(n), nil
}

// count is so many of a thing.
func count(n int, thing string) string {
	if n == 1 {
		return "1 " + thing
	}
	return fmt.Sprintf("%d %ss", n, thing)
}

// digits prints n with three digits that count.
func digits(n float64) string {
	switch {
	case n >= 99.95:
		return strconv.FormatFloat(n, 'f', 0, 64)
	case n >= 9.995:
		return strconv.FormatFloat(n, 'f', 1, 64)
	}
	return strconv.FormatFloat(n, 'f', 2, 64)
}

// bytesText is a number of bytes in units of 1000.
func bytesText(n uint64) string {
	f := float64(n)
	for _, u := range []string{"B", "kB", "MB", "GB", "TB"} {
		if f < 999.5 || u == "TB" {
			if u == "B" {
				return fmt.Sprintf("%d B", n)
			}
			return digits(f) + " " + u
		}
		f /= 1000
	}
	return ""
}

// memoryText is an amount of memory in units of 1024, which memory comes in.
func memoryText(n uint64) string {
	f := float64(n)
	for _, u := range []string{"B", "KiB", "MiB", "GiB", "TiB"} {
		if f < 1023.5 || u == "TiB" {
			return strconv.FormatFloat(math.Round(f*10)/10, 'f', -1, 64) + " " + u
		}
		f /= 1024
	}
	return ""
}

// spanText is a duration as short as it may be.
func spanText(d time.Duration) string {
	switch {
	case d < 0:
		return "-" + spanText(-d)
	case d < time.Millisecond && d > 0:
		return fmt.Sprintf("%d µs", d.Microseconds())
	case d < time.Second:
		return fmt.Sprintf("%d ms", d.Round(time.Millisecond).Milliseconds())
	case d < time.Minute:
		return fmt.Sprintf("%.1f s", d.Seconds())
	case d < time.Hour:
		s := int(d.Round(time.Second) / time.Second)
		return fmt.Sprintf("%d:%02d min", s/60, s%60)
	}
	m := int(d.Round(time.Minute) / time.Minute)
	return fmt.Sprintf("%d:%02d h", m/60, m%60)
}
