package crowd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"image/jpeg"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"
)

// local is a site on loopback, and a group that watches it.
func local(t *testing.T, name string) (*Site, Group) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := Serve(l, name)
	t.Cleanup(func() { _ = s.Close() })
	return s, Group{Name: name, Sites: []netip.AddrPort{netip.MustParseAddrPort(l.Addr().String())}, Open: func(a netip.AddrPort) (Conn, error) {
		return net.Dial("tcp", a.String())
	}}
}

func TestEverybodyGetsEverything(t *testing.T) {
	_, a := local(t, "nezu")
	_, b := local(t, "nara")
	c := New(Config{Groups: []Group{a, b}, Viewers: 40, Rise: 200 * time.Millisecond, Every: 50 * time.Millisecond})
	ctx, cancel := context.WithTimeout(t.Context(), 1200*time.Millisecond)
	defer cancel()
	c.Watch(ctx)
	s := c.Stats()
	if s.Failures > 0 || s.Came != 40 || s.Peak != 40 || s.Open != 0 || s.Requests < 400 || s.ByGroup[0]+s.ByGroup[1] != s.Requests {
		t.Errorf("%+v", s)
	}
	if s.LongestMS <= 0 || s.MedianMS <= 0 || s.MedianMS > s.P99MS || s.P99MS > s.LongestMS {
		t.Errorf("waits: %+v", s)
	}
	var requests int
	for _, sec := range s.Seconds {
		requests += sec.Requests
	}
	if uint64(requests) != s.Requests || len(s.Seconds) < 2 || s.Seconds[0].Open != 40 {
		t.Errorf("seconds: %+v", s.Seconds)
	}
}

// A film is checked to the byte, too.
func TestFilm(t *testing.T) {
	_, g := local(t, "nara")
	c, err := g.Open(g.Sites[0])
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for range 2 {
		if n, err := fetch(c, g.Sites[0], PathFilm); n != FilmSize || err != nil {
			t.Errorf("%d bytes: %v", n, err)
		}
	}
}

// What breaks in any way is a failure, and the viewer comes again.
func TestFailuresAreCounted(t *testing.T) {
	s, g := local(t, "nezu")
	c := New(Config{Groups: []Group{g}, Viewers: 5, Every: 20 * time.Millisecond})
	ctx, cancel := context.WithTimeout(t.Context(), 400*time.Millisecond)
	defer cancel()
	time.AfterFunc(200*time.Millisecond, func() { _ = s.Close() })
	c.Watch(ctx)
	st := c.Stats()
	if st.Failures < 5 || len(st.Errors) < 5 || len(st.Errors) > errorsMax || st.Open != 0 {
		t.Errorf("%+v", st)
	}
}

// What is not a whole good answer is an error that says why.
func TestBadAnswers(t *testing.T) {
	const ok = "HTTP/1.1 200 OK\r\n"
	good := ok + "Content-Length: 3\r\nX-Sum: " + sum([]byte("abc")) + "\r\n\r\n"
	for _, test := range []struct{ answer, want string }{
		{good + "abc", ""},
		{good + "abd", "checksum"},
		{good + "ab", "after 2 of 3 bytes: unexpected EOF"},
		{good + "abcd", "1 bytes after the answer"},
		{"", "unexpected EOF"},
		{ok, "unexpected EOF"},
		{"HTTP/1.1 503 Busy\r\n\r\n", "503"},
		{ok + "Content-Length: 3\r\n\r\nabc", "without length or sum"},
		{ok + "Content-Length: -1\r\n\r\n", "length"},
		{ok + "Content-Length: 1\r\nX-Sum: x\r\n\r\na", "sum"},
		{ok + "X: " + strings.Repeat("y", headMax), "does not end"},
	} {
		n, err := fetch(&tape{r: strings.NewReader(test.answer)}, netip.MustParseAddrPort("[2001:db8::1]:80"), PathPage)
		if (err == nil) != (test.want == "") || err != nil && !strings.Contains(err.Error(), test.want) {
			t.Errorf("%.60q: %d bytes, %v; want %q", test.answer, n, err, test.want)
		}
	}
}

// tape is a connection whose answer is known.
type tape struct {
	r     io.Reader
	asked bytes.Buffer
}

func (t *tape) Read(b []byte) (int, error)     { return t.r.Read(b) }
func (t *tape) Write(b []byte) (int, error)    { return t.asked.Write(b) }
func (t *tape) Close() error                   { return nil }
func (t *tape) SetDeadline(at time.Time) error { return nil }

// The request is one that any server takes.
func TestRequest(t *testing.T) {
	c := &tape{r: strings.NewReader("")}
	_, err := fetch(c, netip.MustParseAddrPort("[2001:db8::1]:80"), PathPicture)
	if !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Error(err)
	}
	if got, want := c.asked.String(), "GET /picture.jpg HTTP/1.1\r\nHost: [2001:db8::1]:80\r\n\r\n"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}

// The picture is one, of a size that a photograph has, and changes every second; the page shows it.
func TestPicture(t *testing.T) {
	s, g := local(t, "nezu")
	at := time.Unix(1_000_000, 0)
	one, sum1 := s.current(at)
	same, _ := s.current(at.Add(900 * time.Millisecond))
	next, sum2 := s.current(at.Add(time.Second))
	if !bytes.Equal(one, same) || bytes.Equal(one, next) || sum1 == sum2 || len(one) < 8000 || len(one) > 25000 {
		t.Errorf("pictures of %d, %d and %d bytes, sums %s and %s", len(one), len(same), len(next), sum1, sum2)
	}
	m, err := jpeg.Decode(bytes.NewReader(one))
	if err != nil || m.Bounds().Dx() != width {
		t.Errorf("%v: %v", m.Bounds(), err)
	}
	resp, err := http.Get(fmt.Sprintf("http://%v/", g.Sites[0]))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	page, err := io.ReadAll(resp.Body)
	if err != nil || !strings.Contains(string(page), PathPicture) || !strings.Contains(string(page), "from nezu") {
		t.Errorf("%v: %s", err, page)
	}
}

// The rate at which viewers come rises: the second half of the time brings three quarters of them.
func TestArrival(t *testing.T) {
	const n, rise = 1000, 10 * time.Second
	early := 0
	for i := range n {
		if arrival(i, n, rise) < rise/2 {
			early++
		}
	}
	if early != n/4 || arrival(0, n, rise) != 0 || arrival(n-1, n, rise) >= rise {
		t.Errorf("%d of %d in the first half", early, n)
	}
}

func TestWaits(t *testing.T) {
	r := newRecord()
	began := time.Unix(0, 0)
	r.begin(began)
	for i := 1; i <= 1000; i++ {
		r.answered(0, began.Add(time.Duration(i)*time.Millisecond), time.Duration(i)*time.Millisecond, 1)
	}
	s := r.stats(began.Add(3 * time.Second))
	if s.MedianMS < 500 || s.MedianMS > 560 || s.P99MS < 990 || s.P99MS > 1000 || s.LongestMS != 1000 || s.LongestAt != 1 || len(s.Seconds) != 4 {
		t.Errorf("%+v", s)
	}
}
