package testnet

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"
)

// Usage is what a daemon took of its machine during a scenario.
type Usage struct {
	Host string `json:"host"`
	Role string `json:"role"`
	// CPUSeconds is its processor time, in user and kernel mode, over the scenario; CPUPercent that of one processor,
	// on average.
	CPUSeconds float64 `json:"cpu_seconds"`
	CPUPercent float64 `json:"cpu_percent"`
	// Memory is what was resident, in MiB: at the beginning, at most, at the end.
	MemoryBeginMiB float64 `json:"memory_begin_mib"`
	MemoryPeakMiB  float64 `json:"memory_peak_mib"`
	MemoryEndMiB   float64 `json:"memory_end_mib"`
}

// usageMeter measures daemons from its making on.
type usageMeter struct {
	began   time.Time
	daemons []meteredDaemon
}

type meteredDaemon struct {
	host, role string
	pid        int
	begin      processUse
}

// processUse is what /proc tells of a process.
type processUse struct {
	cpu            time.Duration
	rssKiB, hwmKiB uint64
}

// newUsageMeter begins to measure all daemons of these roles that run, and forgets what their memory once was at most.
func newUsageMeter(c *Cloud, roles ...string) (*usageMeter, error) {
	m := &usageMeter{began: time.Now()}
	for _, role := range roles {
		for _, n := range nodesOf(role, inCloud) {
			pid := c.hosts[n.name].PID(role)
			// 5 resets the peak of the resident set (proc(5)).
			if err := os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", pid), []byte("5"), 0); err != nil {
				return nil, fmt.Errorf("testnet: usage of %s: %w", n.name, err)
			}
			u, err := useOf(pid)
			if err != nil {
				return nil, fmt.Errorf("testnet: usage of %s: %w", n.name, err)
			}
			m.daemons = append(m.daemons, meteredDaemon{n.name, role, pid, u})
		}
	}
	return m, nil
}

// read is what each daemon took since the beginning.
func (m *usageMeter) read() (out []Usage, err error) {
	took := time.Since(m.began).Seconds()
	for _, d := range m.daemons {
		u, err := useOf(d.pid)
		if err != nil {
			return nil, fmt.Errorf("testnet: usage of %s: %w", d.host, err)
		}
		cpu := (u.cpu - d.begin.cpu).Seconds()
		mib := func(kib uint64) float64 { return round1(float64(kib) / 1024) }
		out = append(out, Usage{Host: d.host, Role: d.role, CPUSeconds: cpu, CPUPercent: round1(100 * cpu / took),
			MemoryBeginMiB: mib(d.begin.rssKiB), MemoryPeakMiB: mib(u.hwmKiB), MemoryEndMiB: mib(u.rssKiB)})
	}
	return out, nil
}

// daemonDrops are the packets that the cloud's data planes say they dropped, by host, part and reason.
func (c *Cloud) daemonDrops(ctx context.Context) (map[string]uint64, error) {
	out := map[string]uint64{}
	for _, role := range []string{"xtr", "detr"} {
		for _, n := range nodesOf(role, inCloud) {
			var rows []struct {
				Part    string `json:"part"`
				Counter string `json:"counter"`
				Value   uint64 `json:"value"`
			}
			if err := c.hosts[n.name].Admin(ctx, http.MethodGet, "/v1/show/counters", nil, &rows); err != nil {
				return nil, err
			}
			for _, r := range rows {
				if r.Part == "kernel" && r.Counter != "encap" && r.Counter != "decap" && r.Counter != "door" || strings.HasPrefix(r.Counter, "drop_") || r.Counter == "replay_missing" {
					out[n.name+": "+r.Part+" "+r.Counter] += r.Value
				}
			}
		}
	}
	return out, nil
}

// grown is what is more in now than in before.
func grown(before, now map[string]uint64) map[string]uint64 {
	out := map[string]uint64{}
	for k, n := range now {
		if n > before[k] {
			out[k] = n - before[k]
		}
	}
	return out
}

// clockTick is the unit of times in /proc: USER_HZ, 100 on every architecture that Go runs on.
const clockTick = 10 * time.Millisecond

func useOf(pid int) (processUse, error) {
	stat, err1 := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	status, err2 := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err := errors.Join(err1, err2); err != nil {
		return processUse{}, err
	}
	return parseUse(string(stat), string(status))
}

// parseUse reads /proc/PID/stat and /proc/PID/status.
func parseUse(stat, status string) (u processUse, err error) {
	f := strings.Fields(stat[strings.LastIndexByte(stat, ')')+1:])
	if len(f) < 13 {
		return u, fmt.Errorf("stat: %d fields", len(f))
	}
	for _, i := range []int{11, 12} { // fields 14 and 15: utime, stime
		ticks, err := strconv.ParseUint(f[i], 10, 64)
		if err != nil {
			return u, fmt.Errorf("stat: %w", err)
		}
		u.cpu += time.Duration(ticks) * clockTick
	}
	for line := range strings.Lines(status) {
		for key, to := range map[string]*uint64{"VmRSS:": &u.rssKiB, "VmHWM:": &u.hwmKiB} {
			if rest, ok := strings.CutPrefix(line, key); ok {
				if *to, err = strconv.ParseUint(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 10, 64); err != nil {
					return u, fmt.Errorf("status: %w", err)
				}
			}
		}
	}
	if u.rssKiB == 0 || u.hwmKiB == 0 {
		return u, errors.New("status: no VmRSS or VmHWM")
	}
	return u, nil
}

// round1 rounds to a tenth.
func round1(v float64) float64 { return float64(int64(v*10+0.5)) / 10 }
