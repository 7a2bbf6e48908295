package crowd

import (
	"bytes"
	"errors"
	"fmt"
	"hash/crc32"
	"net"
	"net/http"
	"strconv"
	"sync"
	"time"
)

// Paths of a site.
const (
	PathPage    = "/"
	PathPicture = "/picture.jpg"
	// PathFilm is a long answer: FilmSize bytes, always the same, as fast as the connection takes them.
	PathFilm = "/film"
)

// FilmSize is the length of the film in bytes.
const FilmSize = 8 << 20

// headerSum carries the CRC-32C of an answer's body, in hexadecimal: a viewer can tell a changed answer from a good one.
const headerSum = "X-Sum"

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// sum is what headerSum says of a body.
func sum(body []byte) string { return strconv.FormatUint(uint64(crc32.Checksum(body, castagnoli)), 16) }

// Site is an HTTP server that runs. Its picture shows its name's colour and changes every second.
type Site struct {
	name   string
	server http.Server
	done   chan struct{}

	mu      sync.Mutex
	second  int64 // of the picture
	picture []byte
	sum     string
}

// Serve serves the site on l until Close.
func Serve(l net.Listener, name string) *Site {
	s := &Site{name: name, done: make(chan struct{})}
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+PathPage+"{$}", s.page)
	mux.HandleFunc("GET "+PathPicture, s.show)
	mux.HandleFunc("GET "+PathFilm, s.film)
	s.server = http.Server{Handler: mux, ReadHeaderTimeout: time.Minute}
	go func() {
		defer close(s.done)
		_ = s.server.Serve(l) // until it is closed
	}()
	return s
}

// Close ends the site and every connection to it.
func (s *Site) Close() error {
	err := s.server.Close()
	<-s.done
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

func (s *Site) page(w http.ResponseWriter, _ *http.Request) {
	body := fmt.Appendf(nil, `<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>Koshien from %[1]s</title>
<style>body{background:#123;color:#eee;font-family:sans-serif;text-align:center}img{width:640px;image-rendering:auto}</style></head>
<body><h1>Koshien, live from %[1]s</h1><img id="p" src="%[2]s" alt="the game">
<script>setInterval(function(){document.getElementById("p").src="%[2]s?"+Date.now()},1000)</script></body></html>
`, s.name, PathPicture)
	answer(w, "text/html; charset=utf-8", body, sum(body))
}

func (s *Site) show(w http.ResponseWriter, _ *http.Request) {
	picture, sum := s.current(time.Now())
	answer(w, "image/jpeg", picture, sum)
}

// current is the picture of this second.
func (s *Site) current(now time.Time) ([]byte, string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if at := now.Unix(); s.picture == nil || at != s.second {
		s.second, s.picture = at, drawScene(s.name, now)
		s.sum = sum(s.picture)
	}
	return s.picture, s.sum
}

// theFilm is a body that does not repeat within a packet, and its sum.
var theFilm = sync.OnceValues(func() ([]byte, string) {
	var b bytes.Buffer
	for i := 0; b.Len() < FilmSize; i++ {
		fmt.Fprintf(&b, "%07x\n", i)
	}
	return b.Bytes(), sum(b.Bytes())
})

func (s *Site) film(w http.ResponseWriter, _ *http.Request) {
	body, sum := theFilm()
	answer(w, "text/plain", body, sum)
}

// answer writes a whole answer. An error is the viewer's to find: his connection is gone.
func answer(w http.ResponseWriter, kind string, body []byte, sum string) {
	h := w.Header()
	h.Set("Content-Type", kind)
	h.Set("Cache-Control", "no-store")
	h.Set("Content-Length", strconv.Itoa(len(body)))
	h.Set(headerSum, sum)
	_, _ = w.Write(body)
}
