package libvirt

import (
	"bytes"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/tabi-lisp/tabi/controller"
	"github.com/tabi-lisp/tabi/lisp"
)

// domainXML is what we read of libvirt's domain XML.
type domainXML struct {
	XMLName  xml.Name `xml:"domain"`
	Name     string   `xml:"name"`
	UUID     string   `xml:"uuid"`
	Memory   sizeXML  `xml:"memory"`
	VCPU     string   `xml:"vcpu"`
	OSType   osType   `xml:"os>type"`
	Metadata struct {
		VM []vmXML `xml:"https://github.com/tabi-lisp/tabi/vm/1 vm"`
	} `xml:"metadata"`
	Disks      []diskXML      `xml:"devices>disk"`
	Interfaces []interfaceXML `xml:"devices>interface"`
}

type osType struct {
	Machine string `xml:"machine,attr"`
}

type sizeXML struct {
	Unit  string `xml:"unit,attr"`
	Value string `xml:",chardata"`
}

type vmXML struct {
	Owner string   `xml:"https://github.com/tabi-lisp/tabi/vm/1 owner"`
	EIDs  []string `xml:"https://github.com/tabi-lisp/tabi/vm/1 eid"`
}

type diskXML struct {
	Device string `xml:"device,attr"` // "disk" if absent
	Target struct {
		Dev string `xml:"dev,attr"`
	} `xml:"target"`
	Driver    formatXML   `xml:"driver"`
	Source    sourceXML   `xml:"source"`
	Backing   *backingXML `xml:"backingStore"`
	ReadOnly  *struct{}   `xml:"readonly"`
	Shareable *struct{}   `xml:"shareable"`
}

type formatXML struct {
	Type string `xml:"type,attr"`
}

type backingXML struct {
	Source sourceXML `xml:"source"`
}

type sourceXML struct {
	File     string `xml:"file,attr"`
	Dev      string `xml:"dev,attr"`
	Dir      string `xml:"dir,attr"`
	Pool     string `xml:"pool,attr"`
	Volume   string `xml:"volume,attr"`
	Protocol string `xml:"protocol,attr"`
	Name     string `xml:"name,attr"`
	Hosts    []struct {
		Name string `xml:"name,attr"`
		Port string `xml:"port,attr"`
	} `xml:"host"`
}

type interfaceXML struct {
	MAC struct {
		Address string `xml:"address,attr"`
	} `xml:"mac"`
	Target struct {
		Dev string `xml:"dev,attr"`
	} `xml:"target"`
	MTU struct {
		Size string `xml:"size,attr"`
	} `xml:"mtu"`
}

// ParseDomain reads libvirt's domain XML: a definition, what `virsh dumpxml` prints, what a hook is given. State is
// unknown and Persistent false, since XML does not tell. A definition that is right except for what the metadata says
// is returned beside the error.
func ParseDomain(doc []byte) (controller.Guest, error) {
	g, _, err := parseDomain(doc)
	return g, err
}

// parseDomain also tells which of the disks a live copy has to take along when nothing is shared.
func parseDomain(doc []byte) (g controller.Guest, local []string, err error) {
	var x domainXML
	if err := xml.Unmarshal(doc, &x); err != nil {
		return g, nil, fmt.Errorf("libvirt: domain XML: %w", err)
	}
	name := strings.TrimSpace(x.Name)
	if name == "" {
		return g, nil, errors.New("libvirt: domain XML: no <name>")
	}
	fail := func(err error) (controller.Guest, []string, error) {
		return controller.Guest{}, nil, fmt.Errorf("libvirt: domain XML of %s: %w", name, err)
	}
	g = controller.Guest{Name: name, UUID: strings.ToLower(strings.TrimSpace(x.UUID)), State: controller.GuestUnknown, Machine: x.OSType.Machine}
	if g.Memory, err = x.Memory.bytes(); err != nil {
		return fail(fmt.Errorf("<memory>: %w", err))
	}
	g.VCPUs = 1 // libvirt's default
	if s := strings.TrimSpace(x.VCPU); s != "" {
		n, err := strconv.ParseUint(s, 10, 16)
		if err != nil {
			return fail(fmt.Errorf("<vcpu>: %q is not a number of CPUs", s))
		}
		g.VCPUs = int(n)
	}
	for _, i := range x.Interfaces {
		mtu, _ := strconv.ParseUint(i.MTU.Size, 10, 16) // libvirt wrote it: what it did not, is not said
		g.Interfaces = append(g.Interfaces, controller.GuestInterface{MAC: strings.ToLower(i.MAC.Address), Device: i.Target.Dev, MTU: int(mtu)})
	}
	for _, d := range x.Disks {
		disk := controller.GuestDisk{Target: d.Target.Dev, Source: d.Source.String(), Format: d.Driver.Type,
			Network: d.Source.Protocol != "", ReadOnly: d.ReadOnly != nil || d.Device == "cdrom"}
		if d.Backing != nil {
			disk.Backing = d.Backing.Source.String()
		}
		g.Disks = append(g.Disks, disk)
		if disk.Source != "" && !disk.Network && !disk.ReadOnly && d.Shareable == nil && (d.Device == "" || d.Device == "disk") {
			local = append(local, disk.Target)
		}
	}
	spans, err := locate(doc)
	if err != nil {
		return fail(err)
	}
	if spans.cpu != nil {
		g.CPU = string(doc[spans.cpu.start:spans.cpu.end])
	}
	if len(x.Metadata.VM) > 0 {
		g.Owner = strings.TrimSpace(x.Metadata.VM[0].Owner)
		if g.EIDs, err = parseEIDs(x.Metadata.VM[0].EIDs); err != nil {
			return g, local, fmt.Errorf("libvirt: metadata of %s: %w", name, err)
		}
	}
	return g, local, nil
}

// parseEIDs returns those that can be read, and what is wrong with the others.
func parseEIDs(texts []string) (eids []lisp.EID, err error) {
	var errs []error
	for _, s := range texts {
		e, err := lisp.ParseEID(strings.TrimSpace(s))
		if err != nil {
			errs = append(errs, err)
			continue
		}
		eids = append(eids, e)
	}
	return eids, errors.Join(errs...)
}

// String is a path, a volume of a pool as "pool/volume", or a URL.
func (s sourceXML) String() string {
	switch {
	case s.File != "":
		return s.File
	case s.Dev != "":
		return s.Dev
	case s.Dir != "":
		return s.Dir
	case s.Protocol != "":
		host := ""
		if len(s.Hosts) > 0 {
			if host = s.Hosts[0].Name; s.Hosts[0].Port != "" {
				host += ":" + s.Hosts[0].Port
			}
		}
		return s.Protocol + "://" + host + "/" + strings.TrimPrefix(s.Name, "/")
	case s.Volume != "":
		return s.Pool + "/" + s.Volume
	}
	return ""
}

// units are libvirt's names of sizes. Those without i or with B are powers of ten, and b and bytes are bytes.
var units = map[string]uint64{
	"b": 1, "bytes": 1, "KB": 1e3, "k": 1 << 10, "KiB": 1 << 10, "MB": 1e6, "M": 1 << 20, "MiB": 1 << 20,
	"GB": 1e9, "G": 1 << 30, "GiB": 1 << 30, "TB": 1e12, "T": 1 << 40, "TiB": 1 << 40, "": 1 << 10,
}

func (s sizeXML) bytes() (uint64, error) {
	text := strings.TrimSpace(s.Value)
	if text == "" {
		return 0, nil
	}
	n, err := strconv.ParseUint(text, 10, 64)
	unit, known := units[s.Unit]
	if err != nil || !known || n > 1<<62/unit {
		return 0, fmt.Errorf("%q with unit %q is not a size", text, s.Unit)
	}
	return n * unit, nil
}

// span is where an element stands in a document: from the first byte of its first tag to after its last one, and its
// content between the two. The content of <a/> is empty and begins at the end.
type span struct{ start, inner, innerEnd, end int64 }

// spans are those elements of a domain that we copy or replace as they are.
type spans struct {
	name, cpu, metadata, vm *span
}

// locate finds the elements of a well-formed document.
func locate(doc []byte) (spans, error) {
	var out spans
	d := xml.NewDecoder(bytes.NewReader(doc))
	var path []xml.Name
	var open []**span // of the elements of path, nil = of no interest
	for {
		start := d.InputOffset()
		tok, err := d.Token()
		if errors.Is(err, io.EOF) {
			return out, nil
		}
		if err != nil {
			return spans{}, err
		}
		switch tok := tok.(type) {
		case xml.StartElement:
			path = append(path, tok.Name)
			p := out.place(path)
			if p != nil && *p != nil {
				p = nil // the first one counts
			}
			if p != nil {
				*p = &span{start: start, inner: d.InputOffset()}
			}
			open = append(open, p)
		case xml.EndElement:
			if p := open[len(open)-1]; p != nil {
				(*p).innerEnd, (*p).end = start, d.InputOffset()
			}
			path, open = path[:len(path)-1], open[:len(open)-1]
		}
	}
}

// place is where the span of an element with this path is kept; nil = nowhere.
func (s *spans) place(path []xml.Name) **span {
	switch {
	case len(path) == 2 && path[1].Local == "name":
		return &s.name
	case len(path) == 2 && path[1].Local == "cpu":
		return &s.cpu
	case len(path) == 2 && path[1].Local == "metadata":
		return &s.metadata
	case len(path) == 3 && path[1].Local == "metadata" && path[2] == xml.Name{Space: Namespace, Local: "vm"}:
		return &s.vm
	}
	return nil
}
