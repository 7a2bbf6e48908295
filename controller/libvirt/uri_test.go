package libvirt

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"io"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/tabi-lisp/tabi/controller"
)

func TestParseURI(t *testing.T) {
	for text, want := range map[string]uri{
		"qemu:///system": {transport: "unix"},
		"qemu+unix:///system?socket=/run/a/libvirt-sock":    {transport: "unix", socket: "/run/a/libvirt-sock"},
		"qemu+tcp://hv-7/system":                            {transport: "tcp", host: "hv-7"},
		"qemu+tcp://[2001:db8::7]:16510/system":             {transport: "tcp", host: "2001:db8::7", port: "16510"},
		"qemu://hv-7/system":                                {transport: "tls", host: "hv-7"},
		"qemu+tls://hv-7/system?pkipath=/etc/p&no_verify=1": {transport: "tls", host: "hv-7", pki: "/etc/p", noVerify: true},
		"qemu+ssh://root@hv-7:2222/system?keyfile=/k":       {transport: "ssh", host: "hv-7", port: "2222", user: "root", keyFile: "/k"},
	} {
		got, err := parseURI(text)
		want.text = text
		if err != nil || got != want {
			t.Errorf("%s: %+v, %v", text, got, err)
		}
	}
	for text, want := range map[string]string{
		"":                                  "must begin with qemu:",
		"xen:///system":                     "must begin with qemu:",
		"qemu+carrier://x/system":           `transport "carrier"`,
		"qemu:///session":                   "path must be /system",
		"qemu+unix://host/system":           "three slashes",
		"qemu+tcp:///system":                "a host is missing",
		"qemu+tcp://me@host/system":         "only ssh takes a user",
		"qemu+tcp://host/system?socket=/x":  `parameter "socket"`,
		"qemu+unix:///system?socket=":       "needs one value",
		"qemu+unix:///system?socket=x":      "absolute path",
		"qemu+tcp://host:many/system":       "invalid port",
		"qemu+tls://h/system?pkipath=/a;b":  "semicolon",
		"qemu+unix:///system?socket=/a&x=1": `parameter "x"`,
	} {
		if _, err := New(text, nil); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", text, err)
		}
	}
}

func FuzzParseURI(f *testing.F) {
	f.Add("qemu+ssh://root@hv-7:2222/system?keyfile=/k&socket=/s")
	f.Add("qemu+unix:///system?socket=/run/a")
	f.Add("qemu+tls://[::1]/system?no_verify=1")
	f.Fuzz(func(t *testing.T, text string) {
		u, err := parseURI(text)
		if err != nil {
			return
		}
		if u.transport != "unix" && u.host == "" || u.socket != "" && !filepath.IsAbs(u.socket) || u.text != text {
			t.Errorf("%q: %+v", text, u)
		}
	})
}

// TestOverEachTransport reaches the same daemon in every way.
func TestOverEachTransport(t *testing.T) {
	l, _, _ := open(t)
	// ssh is played by a program that runs what it is told to, here; nc by this one, see TestMain.
	dir := t.TempDir()
	self, err := os.Executable()
	must(t, err)
	must(t, os.WriteFile(filepath.Join(dir, "nc"), []byte("#!/bin/sh\nPLAY_NC=$2 exec "+self+"\n"), 0o755))
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	must(t, os.WriteFile(filepath.Join(dir, "ssh"), []byte("#!/bin/sh\necho \"$@\" >"+dir+"/args\nfor c; do :; done\nexec sh -c \"$c\"\n"), 0o755))
	old := sshProgram
	sshProgram = filepath.Join(dir, "ssh")
	t.Cleanup(func() { sshProgram = old })
	for name, u := range map[string]string{
		"unix": l.hv[0].URI(),
		"ssh":  "qemu+ssh://me@hv1:2222/system?keyfile=/k&no_verify=1&socket=" + l.hv[0].Socket(),
	} {
		t.Run(name, func(t *testing.T) {
			d, err := New(u, nil)
			must(t, err)
			n, err := d.Node(t.Context())
			must(t, err)
			if n.Hostname != "hv1" {
				t.Errorf("node: %+v", n)
			}
			must(t, d.Close())
		})
	}
	t.Run("tcp", func(t *testing.T) {
		must(t, l.ns[1].Do(func() error { // from the other hypervisor
			u, err := parseURI(l.hv[0].RemoteURI())
			if err != nil {
				return err
			}
			c, err := u.connect(t.Context())
			if err != nil {
				return err
			}
			defer c.close()
			_, err = c.ConnectGetLibVersion()
			return err
		}))
	})
	args, err := os.ReadFile(filepath.Join(dir, "args"))
	must(t, err)
	if got := string(args); !strings.Contains(got, "-p 2222 -l me -i /k -o StrictHostKeyChecking=no -- hv1 nc -U ") {
		t.Errorf("ssh was called with %s", got)
	}
}

func TestSSHThatFailsSaysWhy(t *testing.T) {
	dir := t.TempDir()
	must(t, os.WriteFile(filepath.Join(dir, "ssh"), []byte("#!/bin/sh\necho 'Host key verification failed.' >&2\nexit 255\n"), 0o755))
	old := sshProgram
	sshProgram = filepath.Join(dir, "ssh")
	t.Cleanup(func() { sshProgram = old })
	d, err := New("qemu+ssh://hv-7/system", nil)
	must(t, err)
	if _, err := d.Guests(t.Context()); err == nil || !strings.Contains(err.Error(), "Host key verification failed.") {
		t.Errorf("list: %v", err)
	}
}

// TestOverTLS: the daemon's part is played by one that lets the certificate in and then by one that does not.
func TestOverTLS(t *testing.T) {
	pki := t.TempDir()
	cert := writePKI(t, pki)
	pool := x509.NewCertPool()
	pool.AddCert(cert.Leaf)
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{cert}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: pool})
	must(t, err)
	t.Cleanup(func() { _ = l.Close() })
	verdicts := make(chan byte, 2)
	verdicts <- 1
	verdicts <- 0
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = c.Write([]byte{<-verdicts})
			_, _ = io.ReadFull(c, make([]byte, minPacket)) // the first question
			_ = c.Close()
		}
	}()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	d, err := New("qemu+tls://127.0.0.1:"+port+"/system?pkipath="+pki, nil)
	must(t, err)
	for _, want := range []string{"the connection is lost", "does not accept our certificate"} {
		if _, err := d.Guests(t.Context()); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("list: %v, want %s", err, want)
		}
	}
	d, err = New("qemu+tls://127.0.0.1:"+port+"/system?pkipath=/nowhere", nil)
	must(t, err)
	if _, err := d.Guests(t.Context()); err == nil || !strings.Contains(err.Error(), "own certificate") {
		t.Errorf("list: %v", err)
	}
}

// writePKI writes one certificate that is its own authority, the client's and the server's.
func writePKI(t *testing.T, dir string) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth}, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	must(t, err)
	keyDER, err := x509.MarshalECPrivateKey(key)
	must(t, err)
	certPEM := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	keyPEM := pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: keyDER})
	for file, b := range map[string][]byte{"cacert.pem": certPEM, "clientcert.pem": certPEM, "clientkey.pem": keyPEM} {
		must(t, os.WriteFile(filepath.Join(dir, file), b, 0o600))
	}
	cert, err := tls.X509KeyPair(certPEM, keyPEM)
	must(t, err)
	return cert
}

// TestSomebodyElseAnswers: what is no libvirt is told from it, and does no harm.
func TestSomebodyElseAnswers(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = io.WriteString(c, "SSH-2.0-OpenSSH_9.2p1\r\n")
			t.Cleanup(func() { _ = c.Close() })
		}
	}()
	d, err := New("qemu+tcp://"+l.Addr().String()+"/system", nil)
	must(t, err)
	_, err = d.Guests(t.Context())
	if err == nil || !strings.Contains(err.Error(), "does not speak libvirt's protocol") {
		t.Errorf("list: %v", err)
	}
	if err := d.Watch(t.Context(), func(controller.GuestEvent) {}); err == nil || !strings.Contains(err.Error(), "libvirt's protocol") {
		t.Errorf("watch: %v", err)
	}
}

func TestNobodyAnswers(t *testing.T) {
	d, err := New("qemu+unix:///system?socket="+filepath.Join(t.TempDir(), "none"), nil)
	must(t, err)
	if _, err := d.Guests(t.Context()); err == nil || !strings.Contains(err.Error(), "no such file") {
		t.Errorf("list: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := d.Watch(ctx, func(controller.GuestEvent) {}); err != nil {
		t.Errorf("a watch that was to end: %v", err)
	}
}

// TestWireFollowsPackets in whatever pieces they come.
func TestWireFollowsPackets(t *testing.T) {
	packet := func(n int) string { return "\x00\x00\x00" + string(rune(n)) + strings.Repeat("x", n-4) }
	good := packet(28) + packet(100) + packet(29)
	for name, r := range map[string]io.Reader{"whole": strings.NewReader(good), "bytes": iotest.OneByteReader(strings.NewReader(good)), "halves": iotest.HalfReader(strings.NewReader(good))} {
		w := &wire{Conn: readConn{r}, lost: make(chan struct{}), drained: make(chan struct{})}
		got, err := io.ReadAll(w)
		if err != nil || !cmp.Equal(string(got), good) || w.why != io.EOF {
			t.Errorf("%s: %q, %v, %v", name, got, err, w.why)
		}
	}
	for name, bad := range map[string]string{"short": packet(28) + "\x00\x00\x00\x1b", "long": "\x7f\x00\x00\x00"} {
		w := &wire{Conn: readConn{iotest.OneByteReader(strings.NewReader(bad))}, lost: make(chan struct{}), drained: make(chan struct{})}
		if _, _ = io.ReadAll(w); w.why != errNotLibvirt {
			t.Errorf("%s: %v", name, w.why)
		}
	}
}

type readConn struct{ io.Reader }

func (readConn) Write(b []byte) (int, error)      { return len(b), nil }
func (readConn) Close() error                     { return nil }
func (readConn) LocalAddr() net.Addr              { return pipeAddr{} }
func (readConn) RemoteAddr() net.Addr             { return pipeAddr{} }
func (readConn) SetDeadline(time.Time) error      { return nil }
func (readConn) SetReadDeadline(time.Time) error  { return nil }
func (readConn) SetWriteDeadline(time.Time) error { return nil }
