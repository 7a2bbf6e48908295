package libvirt

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// uri is a connection URI as libvirt has them, checked.
type uri struct {
	text      string // as it was given
	transport string // unix, tcp, tls, ssh
	host      string
	port      string // "" = the transport's default
	user      string
	socket    string // "" = where libvirt's daemons listen
	pki       string // directory of cacert.pem, clientcert.pem and clientkey.pem; "" = where libvirt has them
	keyFile   string // ssh's
	noVerify  bool
}

// remote is what the daemon is asked to open.
const remote = "qemu:///system"

// options are the parameters that a URI of each transport may have.
var options = map[string][]string{
	"unix": {"socket"},
	"tcp":  {},
	"tls":  {"pkipath", "no_verify"},
	"ssh":  {"socket", "keyfile", "no_verify"},
}

// parseURI reads qemu:///system, qemu+unix:///system?socket=PATH, qemu+tcp://HOST[:PORT]/system,
// qemu+tls://HOST[:PORT]/system?pkipath=DIR and qemu+ssh://[USER@]HOST[:PORT]/system?socket=PATH&keyfile=PATH.
func parseURI(text string) (uri, error) {
	fail := func(format string, a ...any) (uri, error) {
		return uri{}, fmt.Errorf("libvirt: URI %q: %s", text, fmt.Sprintf(format, a...))
	}
	u, err := url.Parse(text)
	if err != nil {
		return uri{}, fmt.Errorf("libvirt: URI: %w", err)
	}
	driver, transport, given := strings.Cut(u.Scheme, "+")
	if !given {
		transport = "unix"
		if u.Host != "" {
			transport = "tls" // as libvirt does
		}
	}
	may, known := options[transport]
	switch {
	case driver != "qemu":
		return fail("it must begin with qemu: or qemu+TRANSPORT:")
	case !known:
		return fail("transport %q is none of unix, tcp, tls, ssh", transport)
	case u.Path != "/system":
		return fail("only the system's daemon is served: the path must be /system")
	case transport == "unix" && u.Host != "":
		return fail("a unix socket has no host: write three slashes")
	case transport != "unix" && u.Hostname() == "":
		return fail("a host is missing")
	case u.User != nil && transport != "ssh":
		return fail("only ssh takes a user")
	}
	query, err := url.ParseQuery(u.RawQuery)
	if err != nil {
		return fail("%v", err)
	}
	for k, v := range query {
		if !slices.Contains(may, k) {
			return fail("%s does not take the parameter %q", transport, k)
		}
		if len(v) != 1 || v[0] == "" {
			return fail("parameter %q needs one value", k)
		}
	}
	for _, k := range []string{"socket", "pkipath", "keyfile"} {
		if v := query.Get(k); v != "" && !filepath.IsAbs(v) {
			return fail("%s must be an absolute path", k)
		}
	}
	return uri{text: text, transport: transport, host: u.Hostname(), port: u.Port(), user: u.User.Username(), socket: query.Get("socket"),
		pki: query.Get("pkipath"), keyFile: query.Get("keyfile"), noVerify: query.Get("no_verify") == "1"}, nil
}

// sockets are where libvirt's daemons listen: the one for everything, and the one for QEMU alone.
var sockets = []string{"/run/libvirt/libvirt-sock", "/run/libvirt/virtqemud-sock"}

// dialer notices within half a minute that the other machine is gone.
var dialer = net.Dialer{Timeout: 15 * time.Second,
	KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: 10 * time.Second, Interval: 5 * time.Second, Count: 4}}

// dial opens the transport.
func (u uri) dial(ctx context.Context) (net.Conn, error) {
	switch u.transport {
	case "unix":
		return u.dialUnix(ctx)
	case "tcp":
		return dialer.DialContext(ctx, "tcp", u.address("16509"))
	case "tls":
		return u.dialTLS(ctx)
	}
	return u.dialSSH(ctx)
}

func (u uri) address(port string) string {
	if u.port != "" {
		port = u.port
	}
	return net.JoinHostPort(u.host, port)
}

func (u uri) dialUnix(ctx context.Context) (net.Conn, error) {
	if u.socket != "" {
		return dialer.DialContext(ctx, "unix", u.socket)
	}
	for _, s := range sockets {
		if _, err := os.Stat(s); err == nil {
			return dialer.DialContext(ctx, "unix", s)
		}
	}
	return nil, fmt.Errorf("no libvirt daemon listens here: there is neither %s", strings.Join(sockets, " nor "))
}

func (u uri) dialTLS(ctx context.Context) (net.Conn, error) {
	conf, err := u.tlsConfig()
	if err != nil {
		return nil, err
	}
	d := tls.Dialer{NetDialer: &dialer, Config: conf}
	c, err := d.DialContext(ctx, "tcp", u.address("16514"))
	if err != nil {
		return nil, err
	}
	// The daemon says in one byte whether it likes our certificate.
	stop := context.AfterFunc(ctx, func() { _ = c.Close() })
	defer stop()
	b := make([]byte, 1)
	if _, err := c.Read(b); err != nil || b[0] != 1 {
		return nil, errors.Join(errors.New("it does not accept our certificate, or our address"), err, c.Close())
	}
	return c, nil
}

func (u uri) tlsConfig() (*tls.Config, error) {
	ca, cert, key := "/etc/pki/CA/cacert.pem", "/etc/pki/libvirt/clientcert.pem", "/etc/pki/libvirt/private/clientkey.pem"
	if u.pki != "" {
		ca, cert, key = filepath.Join(u.pki, "cacert.pem"), filepath.Join(u.pki, "clientcert.pem"), filepath.Join(u.pki, "clientkey.pem")
	}
	own, err := tls.LoadX509KeyPair(cert, key)
	if err != nil {
		return nil, fmt.Errorf("own certificate: %w", err)
	}
	conf := &tls.Config{Certificates: []tls.Certificate{own}, InsecureSkipVerify: u.noVerify}
	if u.noVerify {
		return conf, nil
	}
	pem, err := os.ReadFile(ca)
	if err != nil {
		return nil, fmt.Errorf("CA's certificate: %w", err)
	}
	conf.RootCAs = x509.NewCertPool()
	if !conf.RootCAs.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("CA's certificate: %s holds none", ca)
	}
	return conf, nil
}
