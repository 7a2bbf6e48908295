package controller

import (
	"encoding/xml"
	"fmt"
	"slices"
	"strings"
)

// cpuDescription is what matters here of libvirt's <cpu> elements, a guest's and a host's.
type cpuDescription struct {
	Mode     string `xml:"mode,attr"`
	Model    string `xml:"model"`
	Features []struct {
		Name   string `xml:"name,attr"`
		Policy string `xml:"policy,attr"`
	} `xml:"feature"`
}

// maxCPU bounds a <cpu> element, in bytes.
const maxCPU = 1 << 16

// parseCPU reads a <cpu> element; ok is false if s is none.
func parseCPU(s string) (d cpuDescription, ok bool) {
	if s == "" || len(s) > maxCPU || xml.Unmarshal([]byte(s), &d) != nil {
		return cpuDescription{}, false
	}
	d.Model, d.Mode = strings.TrimSpace(d.Model), strings.TrimSpace(d.Mode)
	return d, true
}

func (d cpuDescription) has(feature string) bool {
	for _, f := range d.Features {
		if f.Name == feature {
			return true
		}
	}
	return false
}

// plainCPUs are models that QEMU makes on every host, and that every host can run.
var plainCPUs = []string{"qemu64", "qemu32", "kvm64", "kvm32"}

// cpuFits says whether a guest with this <cpu> can go on at another host. What is not known for sure is a warning: the
// hypervisors compare again, and refuse.
func cpuFits(guest string, from, to *Node) (CheckStatus, string) {
	var a, b string
	if from != nil {
		a = from.CPUModel
	}
	if to != nil {
		b = to.CPUModel
	}
	g, ok := parseCPU(guest)
	switch {
	case guest == "":
		return CheckOK, "it has the hypervisor's plain CPU"
	case !ok:
		return CheckWarn, "its CPU is not described in a way that can be compared"
	case g.Mode == "host-passthrough" || g.Mode == "maximum":
		switch {
		case a == "" || b == "":
			return CheckWarn, "it has its host's own CPU, and which that is is not known"
		case a != b:
			return CheckFail, fmt.Sprintf("it has its host's own CPU (%s), and the target has another: %s", a, b)
		}
		return CheckOK, "both hosts have the same CPU: " + a
	}
	var host cpuDescription
	if to != nil {
		host, _ = parseCPU(to.HostCPU)
	}
	if len(host.Features) > 0 {
		for _, f := range g.Features {
			if (f.Policy == "require" || f.Policy == "force") && !host.has(f.Name) && g.Model == host.Model {
				return CheckFail, "the target's CPU has no " + f.Name
			}
		}
	}
	switch {
	case slices.Contains(plainCPUs, g.Model):
		return CheckOK, "every host has " + g.Model
	case g.Model != "" && (g.Model == host.Model || g.Model == b):
		return CheckOK, "the target has " + g.Model
	case a != "" && a == b:
		return CheckOK, "both hosts have the same CPU: " + a
	case g.Model == "":
		return CheckWarn, fmt.Sprintf("it has the CPU of its host (%s), the target has %s", or(a, "not known"), or(b, "one that is not known"))
	}
	return CheckWarn, fmt.Sprintf("it has a %s; whether the target's CPU (%s) can do that, its hypervisor will say", g.Model, or(b, "not known"))
}
