package crowd

import (
	"bytes"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"net/netip"
	"strconv"
	"sync"
	"time"
)

// Conn is a viewer's connection. A first write may come before it is established, and waits.
type Conn interface {
	io.ReadWriteCloser
	SetDeadline(time.Time) error
}

// answerMax bounds the head of an answer in bytes; buffers are of that size.
const (
	headMax   = 4 << 10
	bufferLen = 32 << 10
)

// buffers are what answers are read into: a viewer needs one only while he waits.
var buffers = sync.Pool{New: func() any { b := make([]byte, bufferLen); return &b }}

// fetch asks for path on a connection and reads the whole answer. It returns the length of the body. An answer that is
// not whole, not 200 or not what the server sent is an error.
func fetch(c Conn, host netip.AddrPort, path string) (int, error) {
	request := make([]byte, 0, 128)
	request = append(request, "GET "...)
	request = append(request, path...)
	request = append(request, " HTTP/1.1\r\nHost: "...)
	request = host.AppendTo(request)
	request = append(request, "\r\n\r\n"...)
	if _, err := c.Write(request); err != nil {
		return 0, fmt.Errorf("ask: %w", err)
	}
	p := buffers.Get().(*[]byte)
	defer buffers.Put(p)
	buf, n := *p, 0
	end := -1
	for end < 0 {
		if n >= headMax {
			return 0, errors.New("the head of the answer does not end")
		}
		k, err := c.Read(buf[n:])
		n += k
		if end = bytes.Index(buf[:n], []byte("\r\n\r\n")); end < 0 && err != nil {
			return 0, fmt.Errorf("answer: %w", short(err))
		}
	}
	length, want, err := head(buf[:end+2])
	if err != nil {
		return 0, err
	}
	body := buf[end+4 : n]
	if len(body) > length {
		return 0, fmt.Errorf("%d bytes after the answer", len(body)-length)
	}
	got, crc := len(body), crc32.Update(0, castagnoli, body)
	for got < length {
		k, err := c.Read(buf[:min(len(buf), length-got)])
		crc = crc32.Update(crc, castagnoli, buf[:k])
		if got += k; got < length && err != nil {
			return got, fmt.Errorf("after %d of %d bytes: %w", got, length, short(err))
		}
	}
	if crc != want {
		return got, errors.New("the answer is not what was sent: its checksum is wrong")
	}
	return got, nil
}

// short is the error of a connection that ended too early.
func short(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// head reads what is needed of the head of an answer: the length of the body, and its sum.
func head(b []byte) (length int, sum uint32, err error) {
	status, rest, _ := bytes.Cut(b, []byte("\r\n"))
	if f := bytes.Fields(status); len(f) < 2 || string(f[0]) != "HTTP/1.1" || string(f[1]) != "200" {
		return 0, 0, fmt.Errorf("answer %q", status)
	}
	length = -1
	summed := false
	for line := range bytes.SplitSeq(rest, []byte("\r\n")) {
		key, value, _ := bytes.Cut(line, []byte(": "))
		switch {
		case bytes.EqualFold(key, []byte("Content-Length")):
			n, err := strconv.ParseUint(string(value), 10, 31)
			if err != nil {
				return 0, 0, fmt.Errorf("answer: length %q", value)
			}
			length = int(n)
		case bytes.EqualFold(key, []byte(headerSum)):
			n, err := strconv.ParseUint(string(value), 16, 32)
			if err != nil {
				return 0, 0, fmt.Errorf("answer: sum %q", value)
			}
			sum, summed = uint32(n), true
		}
	}
	if length < 0 || !summed {
		return 0, 0, errors.New("answer without length or sum")
	}
	return length, sum, nil
}
