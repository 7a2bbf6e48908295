package libvirt

import (
	"reflect"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/tabi-lisp/tabi/controller"
	"github.com/tabi-lisp/tabi/lisp"
)

func mustEID(t *testing.T, s string) lisp.EID {
	t.Helper()
	e, err := lisp.ParseEID(s)
	must(t, err)
	return e
}

var eidByString = cmp.Comparer(func(a, b lisp.EID) bool { return a == b })

// fullDomain has of everything that is read.
const fullDomain = `<?xml version='1.0'?>
<!-- as libvirt prints it -->
<domain type='kvm' id='3'>
  <name>web</name>
  <uuid>0F47B5C1-1B7B-4B3E-8B1E-0123456789AB</uuid>
  <metadata>
    <other:thing xmlns:other="urn:other"><tabi:vm xmlns:tabi="https://github.com/tabi-lisp/tabi/vm/1"><tabi:owner>mallory</tabi:owner></tabi:vm></other:thing>
    <t:vm xmlns:t="https://github.com/tabi-lisp/tabi/vm/1">
      <t:owner> alice &amp; co </t:owner>
      <t:eid>198.51.100.10/32</t:eid>
      <t:eid>
        2001:db8:51::10
      </t:eid>
      <t:eid>[7]10.0.0.0/8</t:eid>
      <t:colour>blue</t:colour>
    </t:vm>
  </metadata>
  <memory unit='MiB'>512</memory>
  <currentMemory unit='KiB'>1024</currentMemory>
  <vcpu placement='static' current='1'>4</vcpu>
  <os><type arch='x86_64' machine='pc-q35-7.2'>hvm</type></os>
  <cpu mode='host-model' check='partial'><model fallback='allow'/></cpu>
  <devices>
    <disk type='file' device='disk'>
      <driver name='qemu' type='qcow2'/><source file='/var/lib/vm/web.qcow2' index='1'/>
      <backingStore type='file' index='2'><format type='raw'/><source file='/var/lib/vm/base.img'/><backingStore/></backingStore>
      <target dev='vda' bus='virtio'/>
    </disk>
    <disk type='network' device='disk'>
      <driver name='qemu' type='raw'/>
      <source protocol='rbd' name='pool/image'><host name='mon1' port='6789'/><host name='mon2'/></source>
      <target dev='vdb'/>
    </disk>
    <disk type='file' device='cdrom'><source file='/iso'/><target dev='sda'/></disk>
    <disk type='file' device='cdrom'><target dev='sdb'/></disk>
    <disk type='block' device='disk'><source dev='/dev/sdx'/><target dev='vdc'/><shareable/></disk>
    <disk type='volume' device='disk'><source pool='p' volume='v'/><target dev='vdd'/></disk>
    <disk type='file' device='disk'><source file='/ro'/><target dev='vde'/><readonly/></disk>
    <interface type='bridge'><mac address='52:54:00:AA:BB:01'/><source bridge='br0'/><target dev='vnet3'/><mtu size='1400'/></interface>
    <interface type='ethernet'><mac address='52:54:00:aa:bb:02'/></interface>
  </devices>
</domain>`

func TestParseDomain(t *testing.T) {
	got, local, err := parseDomain([]byte(fullDomain))
	must(t, err)
	want := controller.Guest{Name: "web", UUID: "0f47b5c1-1b7b-4b3e-8b1e-0123456789ab", State: controller.GuestUnknown, VCPUs: 4, Memory: 512 << 20,
		Machine: "pc-q35-7.2", CPU: `<cpu mode='host-model' check='partial'><model fallback='allow'/></cpu>`,
		Interfaces: []controller.GuestInterface{{MAC: "52:54:00:aa:bb:01", Device: "vnet3", MTU: 1400}, {MAC: "52:54:00:aa:bb:02"}},
		Disks: []controller.GuestDisk{
			{Target: "vda", Source: "/var/lib/vm/web.qcow2", Backing: "/var/lib/vm/base.img", Format: "qcow2"},
			{Target: "vdb", Source: "rbd://mon1:6789/pool/image", Format: "raw", Network: true},
			{Target: "sda", Source: "/iso", ReadOnly: true}, {Target: "sdb", ReadOnly: true},
			{Target: "vdc", Source: "/dev/sdx"}, {Target: "vdd", Source: "p/v"}, {Target: "vde", Source: "/ro", ReadOnly: true}},
		Owner: "alice & co", EIDs: []lisp.EID{mustEID(t, "198.51.100.10/32"), mustEID(t, "2001:db8:51::10/128"), mustEID(t, "[7]10.0.0.0/8")}}
	if diff := cmp.Diff(want, got, eidByString); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]string{"vda", "vdd"}, local); diff != "" {
		t.Errorf("disks that a copy takes along: %s", diff)
	}
}

func TestParseDomainRefuses(t *testing.T) {
	for name, doc := range map[string]string{
		"nothing":      "",
		"not a domain": "<network><name>x</name></network>",
		"cut":          fullDomain[:400],
		"nameless":     "<domain><name> </name></domain>",
		"memory":       "<domain><name>x</name><memory unit='pages'>7</memory></domain>",
		"much memory":  "<domain><name>x</name><memory unit='TiB'>99999999999</memory></domain>",
		"vcpu":         "<domain><name>x</name><vcpu>-1</vcpu></domain>",
	} {
		if g, err := ParseDomain([]byte(doc)); err == nil || !reflect.DeepEqual(g, controller.Guest{}) {
			t.Errorf("%s: %+v, %v", name, g, err)
		}
	}
}

func TestParseDomainWithWrongMetadata(t *testing.T) {
	doc := `<domain><name>x</name><metadata><vm xmlns="` + Namespace + `"><owner>bob</owner><eid>10.0.0.300</eid><eid>10.0.0.3</eid></vm></metadata></domain>`
	g, err := ParseDomain([]byte(doc))
	if err == nil || !strings.Contains(err.Error(), "10.0.0.300") || !strings.Contains(err.Error(), "x") {
		t.Errorf("error: %v", err)
	}
	if g.Name != "x" || g.Owner != "bob" || len(g.EIDs) != 1 {
		t.Errorf("what can be read: %+v", g)
	}
	repaired, err := WithMetadata(doc, "bob", g.EIDs)
	must(t, err)
	if _, err := ParseDomain([]byte(repaired)); err != nil {
		t.Error(err)
	}
}

func TestWithMetadata(t *testing.T) {
	eids := []lisp.EID{mustEID(t, "198.51.100.10/32"), mustEID(t, "[7]2001:db8::/64")}
	const alice = `<tabi:vm xmlns:tabi="` + Namespace + `"><tabi:owner>alice</tabi:owner></tabi:vm>`
	for name, c := range map[string]struct {
		doc, owner string
		eids       []lisp.EID
		want       string
	}{
		"none before": {"<domain>\n  <name>x</name>\n</domain>", "alice", nil, "<domain>\n  <name>x</name>\n  <metadata>" + alice + "</metadata>\n</domain>"},
		"others before": {`<domain><metadata><a:b xmlns:a="urn:a"/></metadata><name>x</name></domain>`, "alice", nil,
			`<domain><metadata>` + alice + `<a:b xmlns:a="urn:a"/></metadata><name>x</name></domain>`},
		"empty":    {"<domain><metadata/><name>x</name></domain>", "alice", nil, "<domain><metadata>" + alice + "</metadata><name>x</name></domain>"},
		"replaced": {"<domain><name>x</name><metadata>" + alice + "</metadata></domain>", "bob", nil, "<domain><name>x</name><metadata>" + strings.Replace(alice, "alice", "bob", 1) + "</metadata></domain>"},
		"removed":  {"<domain><name>x</name><metadata>" + alice + "</metadata></domain>", "", nil, "<domain><name>x</name><metadata></metadata></domain>"},
		"nothing":  {"<domain><name>x</name></domain>", " ", nil, "<domain><name>x</name></domain>"},
		"escaped": {"<domain><name>x</name></domain>", "<&>", eids, "<domain><name>x</name>\n  <metadata><tabi:vm xmlns:tabi=\"" + Namespace +
			"\"><tabi:owner>&lt;&amp;&gt;</tabi:owner><tabi:eid>198.51.100.10/32</tabi:eid><tabi:eid>[7]2001:db8::/64</tabi:eid></tabi:vm></metadata></domain>"},
	} {
		got, err := WithMetadata(c.doc, c.owner, c.eids)
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if diff := cmp.Diff(c.want, got); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
	for name, c := range map[string]struct {
		doc, owner string
		eids       []lisp.EID
	}{
		"no domain":     {"<a/>", "alice", nil},
		"control":       {"<domain><name>x</name></domain>", "a\x01b", nil},
		"invalid EID":   {"<domain><name>x</name></domain>", "alice", []lisp.EID{{}}},
		"broken domain": {"<domain><name>x</name>", "alice", nil},
	} {
		if got, err := WithMetadata(c.doc, c.owner, c.eids); err == nil {
			t.Errorf("%s: %s", name, got)
		}
	}
}

// FuzzParseDomain: whatever can be read, takes metadata, gives them back, and stays what it was otherwise.
func FuzzParseDomain(f *testing.F) {
	for _, s := range []string{fullDomain, "<domain><name>x</name></domain>", "<domain><name>x</name><metadata/></domain>",
		`<domain><name>x</name><metadata><vm xmlns="` + Namespace + `"><eid>10.0.0.3</eid></vm></metadata></domain>`,
		"<domain><name>a</name><name>b</name><cpu/><cpu/><metadata/><metadata/></domain>"} {
		f.Add(s, "alice", "198.51.100.10/32")
	}
	f.Fuzz(func(t *testing.T, doc, owner, eid string) {
		before, err := ParseDomain([]byte(doc))
		if err != nil && before.Name == "" {
			return
		}
		var eids []lisp.EID
		if e, err := lisp.ParseEID(eid); err == nil {
			eids = append(eids, e)
		}
		changed, err := WithMetadata(doc, owner, eids)
		if err != nil {
			return // an owner that XML cannot say
		}
		after, err := ParseDomain([]byte(changed))
		if err != nil {
			t.Fatalf("after the change: %v\n%s", err, changed)
		}
		if want := strings.TrimSpace(owner); after.Owner != want || !cmp.Equal(after.EIDs, eids, eidByString) {
			t.Fatalf("metadata say %q %v, want %q %v\n%s", after.Owner, after.EIDs, want, eids, changed)
		}
		before.Owner, before.EIDs, after.Owner, after.EIDs = "", nil, "", nil
		if diff := cmp.Diff(before, after, eidByString); diff != "" {
			t.Fatalf("something else changed: %s", diff)
		}
	})
}
