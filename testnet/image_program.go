package testnet

import (
	"context"
	"crypto/sha256"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// guestSource is the source of the program in a guest, and of what it shares with the flows here.
//
//go:embed guest/disk.go guest/machine.go guest/main.go guest/memory.go guest/pump.go guest/serve.go guest/session.go guest/socket.go guest/tcp.go
//go:embed stream/control.go stream/counter.go stream/doc.go stream/echo.go stream/pace.go stream/stamp.go stream/transfer.go
var guestSource embed.FS

// goPaths are where Go is looked for besides PATH, which sudo shortens.
var goPaths = []string{"/usr/local/go/bin/go", "/usr/lib/go/bin/go"}

// guestProgram is the program testnet/guest, statically linked. It is built when it is not in the cache: the name there
// is made of its source and of the version of Go.
func guestProgram(ctx context.Context, cache string, progress func(string)) ([]byte, error) {
	source, err := guestFiles()
	if err != nil {
		return nil, err
	}
	tool, err := findGo()
	if err != nil {
		// Built by another Go, or by one that has gone since: as good.
		have, _ := filepath.Glob(filepath.Join(cache, "guest-"+source.hash+"-*"))
		if len(have) > 0 {
			return os.ReadFile(have[0])
		}
		return nil, err
	}
	version, err := output(exec.CommandContext(ctx, tool, "env", "GOVERSION"))
	if err != nil {
		return nil, err
	}
	path := filepath.Join(cache, "guest-"+source.hash+"-"+strings.TrimSpace(string(version)))
	if b, err := os.ReadFile(path); err == nil {
		now := time.Now()
		return b, os.Chtimes(path, now, now)
	}
	progress("building the program in the guest")
	prune(cache, "guest-*", time.Now().Add(-24*time.Hour))
	b, err := buildGuest(ctx, tool, cache, source)
	if err != nil {
		return nil, err
	}
	return b, writeWhole(path, b, 0o755)
}

// sources are files by their path below testnet, and a short hash of them all.
type sources struct {
	files map[string][]byte
	hash  string
}

func guestFiles() (sources, error) {
	s := sources{files: make(map[string][]byte)}
	sum := sha256.New()
	err := fs.WalkDir(guestSource, ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := guestSource.ReadFile(path)
		if err != nil {
			return err
		}
		s.files[path] = b
		fmt.Fprintf(sum, "%s %d\n%s", path, len(b), b)
		return nil
	})
	s.hash = fmt.Sprintf("%x", sum.Sum(nil))[:16]
	return s, err
}

func findGo() (string, error) {
	if tool, err := exec.LookPath("go"); err == nil {
		return tool, nil
	}
	if i := slices.IndexFunc(goPaths, exists); i >= 0 {
		return goPaths[i], nil
	}
	return "", errors.New("no Go to build the program in the guest with: install it (https://go.dev/doc/install) or put it into PATH (sudo shortens that: sudo env PATH=$PATH ...)")
}

// guestModule is the module that the sources are built in: their own paths, and nothing else of it.
const guestModule = "module github.com/tabi-lisp/tabi\n\ngo 1.24\n"

// buildGuest builds the program in a directory of its own. Nothing is fetched: it needs the standard library only.
func buildGuest(ctx context.Context, tool, cache string, s sources) ([]byte, error) {
	tmp, err := os.MkdirTemp(cache, "build-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(tmp)
	if err := os.WriteFile(filepath.Join(tmp, "go.mod"), []byte(guestModule), 0o644); err != nil {
		return nil, err
	}
	for path, b := range s.files {
		to := filepath.Join(tmp, "testnet", path)
		if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
			return nil, err
		}
		if err := os.WriteFile(to, b, 0o644); err != nil {
			return nil, err
		}
	}
	out := filepath.Join(tmp, "guest.bin")
	cmd := exec.CommandContext(ctx, tool, "build", "-trimpath", "-buildvcs=false", "-ldflags", "-s -w", "-o", out, "./testnet/guest")
	cmd.Dir = tmp
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH=amd64", "GOWORK=off", "GOFLAGS=", "GOTOOLCHAIN=local", "GOPROXY=off")
	if os.Getenv("HOME") == "" && os.Getenv("GOCACHE") == "" {
		cmd.Env = append(cmd.Env, "GOCACHE="+filepath.Join(cache, "go-build"))
	}
	if _, err := output(cmd); err != nil {
		return nil, fmt.Errorf("build the program in the guest: %w", err)
	}
	return os.ReadFile(out)
}
