package qmp

import (
	"context"
	"fmt"
	"strings"
	"time"
)

// Disk is a disk that is copied with its VM.
type Disk struct {
	Node   string // its block node's name at the source
	Target string // at the target; "" = the same
	// TopOnly copies what is in the image itself and not what is in its backing file, which the target has.
	TopOnly bool
}

// NBD is where a target serves its disks. Either a unix socket that both reach, or an address.
type NBD struct {
	Path string // of a unix socket
	Host string // as the source reaches it; the target listens there too
	Port string
}

func (n NBD) address() map[string]any {
	if n.Path != "" {
		return map[string]any{"type": "unix", "path": n.Path}
	}
	return map[string]any{"type": "inet", "host": n.Host, "port": n.Port}
}

// legacy is the address as commands of old want it.
func (n NBD) legacy() map[string]any {
	a := n.address()
	data := map[string]any{}
	for k, v := range a {
		if k != "type" {
			data[k] = v
		}
	}
	return map[string]any{"type": a["type"], "data": data}
}

// mirror is the copy of one disk.
type mirror struct {
	job, node   string
	total, done uint64
}

// mirror has the target serve its disks, and the source copy its own there until both are alike. From then on each
// write of the guest goes to both.
func (m *migration) mirror(ctx context.Context) error {
	if len(m.o.Disks) == 0 {
		return nil
	}
	if err := m.dst.Execute(ctx, "nbd-server-start", map[string]any{"addr": m.o.NBD.legacy()}, nil); err != nil {
		return err
	}
	m.serving = true
	for i, d := range m.o.Disks {
		target := d.Target
		if target == "" {
			target = d.Node
		}
		export := fmt.Sprintf("tabi-%d", i)
		if err := m.dst.Execute(ctx, "block-export-add", map[string]any{"type": "nbd", "id": export, "node-name": target,
			"name": export, "writable": true}, nil); err != nil {
			return err
		}
		remote := "tabi-remote-" + fmt.Sprint(i)
		if err := m.src.Execute(ctx, "blockdev-add", map[string]any{"driver": "nbd", "node-name": remote,
			"server": m.o.NBD.address(), "export": export}, nil); err != nil {
			return err
		}
		sync := "full"
		if d.TopOnly {
			sync = "top"
		}
		job := mirror{job: "tabi-mirror-" + fmt.Sprint(i), node: remote}
		m.mirrors = append(m.mirrors, job)
		if err := m.src.Execute(ctx, "blockdev-mirror", map[string]any{"job-id": job.job, "device": d.Node, "target": remote,
			"sync": sync, "copy-mode": "write-blocking"}, nil); err != nil {
			return err
		}
	}
	return m.awaitJobs(ctx, "BLOCK_JOB_READY")
}

// awaitJobs waits until every copy has come to the event.
func (m *migration) awaitJobs(ctx context.Context, event string) error {
	tick := time.NewTicker(progressEvery)
	defer tick.Stop()
	for {
		missing := false
		m.mu.Lock()
		for i, d := range m.mirrors {
			switch said := m.source.jobs[d.job]; {
			case said == event:
			case strings.HasPrefix(said, "BLOCK_JOB_ERROR"), said != "" && said != "BLOCK_JOB_READY":
				m.mu.Unlock()
				return fmt.Errorf("qmp: copy of disk %s: %s", m.o.Disks[i].Node, said)
			default:
				missing = true
			}
		}
		m.mu.Unlock()
		if !missing {
			return nil
		}
		select {
		case <-m.wake:
		case <-tick.C:
			m.measureDisks(ctx)
		case <-m.src.Done():
			return fmt.Errorf("qmp: copy of disks: %w", m.src.Err())
		case <-ctx.Done():
			return fmt.Errorf("qmp: copy of disks: %w", context.Cause(ctx))
		}
	}
}

// measureDisks asks how far the copies are, and tells.
func (m *migration) measureDisks(ctx context.Context) {
	var jobs []struct {
		Device      string
		Len, Offset uint64
	}
	if m.src.Execute(ctx, "query-block-jobs", nil, &jobs) != nil {
		return
	}
	for _, j := range jobs {
		for i := range m.mirrors {
			if m.mirrors[i].job == j.Device {
				m.mirrors[i].total, m.mirrors[i].done = j.Len, j.Offset
			}
		}
	}
	p := m.measured(migrateInfo{Status: "storage"})
	m.progress(p)
}

// switchDisks ends the copies of a VM that has stopped for the switch: from now on the target's disks are the disks. They
// are served no more when the target's devices take them.
func (m *migration) switchDisks() error {
	ctx, cancel := undoing()
	defer cancel()
	for _, d := range m.mirrors {
		if err := m.src.Execute(ctx, "block-job-cancel", map[string]any{"device": d.job}, nil); err != nil {
			return err
		}
	}
	if err := m.awaitJobs(ctx, "BLOCK_JOB_COMPLETED"); err != nil {
		return err
	}
	for i := range m.mirrors {
		m.mirrors[i].job = ""
		if err := m.src.Execute(ctx, "blockdev-del", map[string]any{"node-name": m.mirrors[i].node}, nil); err != nil {
			return err
		}
		m.mirrors[i].node = ""
	}
	return m.stopServing(ctx)
}

// stopServing ends the target's service of its disks.
func (m *migration) stopServing(ctx context.Context) error {
	if !m.serving {
		return nil
	}
	m.serving = false
	return m.dst.Execute(ctx, "nbd-server-stop", nil, nil)
}

// unmirror takes away what mirror made and nobody needs any more. What cannot be taken away ends with its process.
func (m *migration) unmirror() {
	ctx, cancel := undoing()
	defer cancel()
	for _, d := range m.mirrors {
		if d.job != "" {
			_ = m.src.Execute(ctx, "block-job-cancel", map[string]any{"device": d.job, "force": true}, nil)
		}
	}
	for deadline := time.Now().Add(time.Second); len(m.mirrors) > 0 && time.Now().Before(deadline) && m.src.Err() == nil; {
		var jobs []struct{ Device string }
		if m.src.Execute(ctx, "query-block-jobs", nil, &jobs) != nil || len(jobs) == 0 {
			break
		}
		time.Sleep(5 * time.Millisecond)
	}
	for _, d := range m.mirrors {
		if d.node == "" {
			continue
		}
		_ = m.src.Execute(ctx, "blockdev-del", map[string]any{"node-name": d.node}, nil)
	}
	_ = m.stopServing(ctx)
}
