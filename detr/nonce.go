package detr

import (
	"crypto/rand"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// nonceSource hands out the nonces of Map-Registers: they strictly increase, over restarts too (RFC 9301
// section 5.6). They follow the wall clock in nanoseconds and never fall below what a file says is used.
type nonceSource struct {
	file     string // empty: none
	last     uint64
	reserved uint64 // the file says that nonces up to here are used
}

// nonceReserve is how far ahead the file is kept, so that it is written now and then only.
const nonceReserve = uint64(10 * time.Minute)

type nonceFile struct {
	Reserved uint64 `json:"reserved"`
}

// openNonces starts above what was used before.
func openNonces(dir string) (*nonceSource, error) {
	n := &nonceSource{}
	if dir == "" {
		return n, nil
	}
	n.file = filepath.Join(dir, "nonces.json")
	b, err := os.ReadFile(n.file)
	if errors.Is(err, fs.ErrNotExist) {
		return n, nil
	}
	if err != nil {
		return nil, fmt.Errorf("detr: nonces: %w", err)
	}
	var f nonceFile
	if err := json.Unmarshal(b, &f); err != nil {
		return nil, fmt.Errorf("detr: nonces: %s: %w", n.file, err)
	}
	n.last, n.reserved = f.Reserved, f.Reserved
	return n, nil
}

// next is a nonce above all before it. An error says that the next start may repeat it: it is good
// nevertheless.
func (n *nonceSource) next(now time.Time) (uint64, error) {
	n.last = max(n.last+1, uint64(max(now.UnixNano(), 0)))
	if n.file == "" || n.last < n.reserved {
		return n.last, nil
	}
	reserve := n.last + nonceReserve
	if err := writeFile(n.file, nonceFile{Reserved: reserve}); err != nil {
		return n.last, fmt.Errorf("detr: nonces: %w", err)
	}
	n.reserved = reserve
	return n.last, nil
}

// writeFile replaces a file by v in JSON, whole or not at all.
func writeFile(name string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(name), filepath.Base(name)+".*")
	if err != nil {
		return err
	}
	_, err = f.Write(append(b, '\n'))
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), name)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return nil
}

// randomNonce is for Map-Requests: nobody off the path can guess it (RFC 9301 section 5.2).
func randomNonce() uint64 {
	var b [8]byte
	_, _ = rand.Read(b[:]) // never fails
	return binary.BigEndian.Uint64(b[:])
}
