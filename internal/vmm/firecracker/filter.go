package firecracker

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"

	"golang.org/x/sys/unix"

	"github.com/vmsan/vmsan/internal/vmm"
)

// maxFilter bounds filters of system calls in bytes, as Firecracker does.
const maxFilter = 100_000

// compiler makes filters out of JSON. It comes with Firecracker's release.
const compiler = "seccompiler-bin"

// ErrNoCompiler is what ReadFilter returns for JSON where there is no compiler.
var ErrNoCompiler = errors.New(compiler + " is not there, and filters in JSON have to be compiled")

// ReadFilter returns the filters in a file in Firecracker's own format. They
// are compiled if they are JSON. Firecracker itself says, when it starts,
// whether it can use them.
func (d Driver) ReadFilter(ctx context.Context, path string) ([]byte, error) {
	filter, err := readFilter(path)
	if err == nil && bytes.HasPrefix(bytes.TrimSpace(filter), []byte("{")) {
		filter, err = d.compile(ctx, filter)
	}
	if err != nil {
		return nil, fmt.Errorf("read filter %s: %w", path, err)
	}
	return filter, nil
}

func readFilter(path string) ([]byte, error) {
	file, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	var stat unix.Stat_t
	if err := unix.Fstat(int(file.Fd()), &stat); err != nil {
		return nil, err
	}
	switch {
	case stat.Mode&unix.S_IFMT != unix.S_IFREG:
		return nil, errors.New("it is not a file")
	case stat.Uid != 0 && int(stat.Uid) != os.Geteuid() || stat.Mode&0o022 != 0:
		return nil, errors.New("others can write it: chown root and chmod 644")
	case stat.Size == 0:
		return nil, errors.New("it is empty")
	case stat.Size > maxFilter:
		return nil, fmt.Errorf("it is larger than %d bytes", maxFilter)
	}
	return io.ReadAll(io.LimitReader(file, maxFilter))
}

// compile makes filters for this host's architecture, with the compiler of the
// release if it has one.
func (d Driver) compile(ctx context.Context, text []byte) ([]byte, error) {
	path, err := exec.LookPath(d.path(compiler))
	if err != nil {
		path, err = exec.LookPath(compiler)
	}
	if err != nil {
		return nil, ErrNoCompiler
	}
	dir, err := os.MkdirTemp("", "filter-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	in, out := filepath.Join(dir, "in"), filepath.Join(dir, "out")
	if err := os.WriteFile(in, text, 0o600); err != nil {
		return nil, err
	}
	arch := map[string]string{"amd64": "x86_64", "arm64": "aarch64"}[runtime.GOARCH]
	said, err := exec.CommandContext(ctx, path, "--input-file", in, "--target-arch", arch, "--output-file", out).CombinedOutput()
	if err != nil {
		return nil, fmt.Errorf("compile it with %s: %w: %s", compiler, err, oneLine(said))
	}
	return readFilter(out)
}

// oneLine is what a program said, bounded and safe to print.
func oneLine(said []byte) string {
	line := string(bytes.Join(bytes.Fields(said), []byte(" ")))
	return vmm.Printable(line[:min(len(line), maxFault)])
}
