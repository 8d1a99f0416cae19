package kernel

import (
	"archive/tar"
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
)

// Bounds on a Debian package. The largest kernel packages have 8,000 files
// and, unpacked, 800 MB.
const (
	maxMembers  = 16
	maxDebFiles = 100_000
	maxDebSize  = 4 << 30
	maxControl  = 1 << 20
)

// errStop ends a walk early.
var errStop = errors.New("stop")

const (
	arMagic      = "!<arch>\n"
	arHeaderSize = 60
)

// readAr calls visit for each member of an ar archive in turn: deb(5) and
// ar(5). A member can be read only during its call.
func readAr(r io.Reader, visit func(name string, body io.Reader) error) error {
	magic := make([]byte, len(arMagic))
	if _, err := io.ReadFull(r, magic); err != nil || string(magic) != arMagic {
		return errors.New("not an ar archive")
	}
	for range maxMembers {
		name, size, err := readArHeader(r)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		body := &io.LimitedReader{R: r, N: size}
		if err := visit(name, body); err != nil {
			return fmt.Errorf("member %s: %w", name, err)
		}
		if err := skipRest(r, body, size); err != nil {
			return fmt.Errorf("member %s: %w", name, err)
		}
	}
	return fmt.Errorf("ar archive has more than %d members", maxMembers)
}

// readArHeader returns io.EOF only where an archive may end.
func readArHeader(r io.Reader) (name string, size int64, err error) {
	var h [arHeaderSize]byte
	if _, err := io.ReadFull(r, h[:]); err != nil {
		if errors.Is(err, io.EOF) {
			return "", 0, io.EOF
		}
		return "", 0, fmt.Errorf("read ar header: %w", err)
	}
	if string(h[58:]) != "`\n" {
		return "", 0, errors.New("malformed ar header")
	}
	name = strings.TrimSuffix(strings.TrimRight(string(h[:16]), " "), "/")
	size, err = strconv.ParseInt(strings.TrimRight(string(h[48:58]), " "), 10, 64)
	if err != nil || size < 0 {
		return "", 0, fmt.Errorf("ar member %.16q: malformed size", name)
	}
	return name, size, nil
}

// skipRest skips what visit left of a member, and its padding to an even
// size, which the last member may lack.
func skipRest(r io.Reader, body *io.LimitedReader, size int64) error {
	if _, err := io.Copy(io.Discard, body); err != nil {
		return err
	}
	if body.N > 0 {
		return fmt.Errorf("%d bytes are missing: %w", body.N, io.ErrUnexpectedEOF)
	}
	if size%2 == 0 {
		return nil
	}
	_, err := io.CopyN(io.Discard, r, 1)
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

// walkDeb calls visit for each entry of one of a Debian package's archives:
// "control.tar" or "data.tar", whatever their compression.
func walkDeb(file, archive string, visit func(*tar.Header, io.Reader) error) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	found := false
	err = readAr(bufio.NewReader(f), func(name string, body io.Reader) error {
		if name != archive && !strings.HasPrefix(name, archive+".") {
			return nil
		}
		found = true
		if err := walkTar(body, visit); err != nil {
			return err
		}
		return errStop
	})
	if err != nil && !errors.Is(err, errStop) {
		return fmt.Errorf("read Debian package: %w", err)
	}
	if !found {
		return fmt.Errorf("read Debian package: it has no %s", archive)
	}
	return nil
}

// walkTar ends without an error when visit returns errStop.
func walkTar(body io.Reader, visit func(*tar.Header, io.Reader) error) error {
	z, err := openTar(bufio.NewReader(body))
	if err != nil {
		return err
	}
	bounded := &io.LimitedReader{R: z, N: maxDebSize}
	t := tar.NewReader(bounded)
	for range maxDebFiles {
		h, err := t.Next()
		if errors.Is(err, io.EOF) && bounded.N > 0 {
			return nil
		}
		if errors.Is(err, io.EOF) || bounded.N <= 0 {
			return fmt.Errorf("more than %d bytes unpacked", int64(maxDebSize))
		}
		if err != nil {
			return err
		}
		if err := visit(h, t); errors.Is(err, errStop) {
			return nil
		} else if err != nil {
			return fmt.Errorf("%.200s: %w", h.Name, err)
		}
	}
	return fmt.Errorf("more than %d files", maxDebFiles)
}

func openTar(r *bufio.Reader) (io.Reader, error) {
	z, err := decompressor(r)
	if errors.Is(err, errNotCompressed) {
		return r, nil
	}
	return z, err
}

// debControl returns a Debian package's control file.
func debControl(file string) (string, error) {
	var control []byte
	err := walkDeb(file, "control.tar", func(h *tar.Header, r io.Reader) error {
		if path.Clean(h.Name) != "control" {
			return nil
		}
		var err error
		if control, err = readAtMost(r, maxControl); err != nil {
			return err
		}
		return errStop
	})
	if err != nil {
		return "", err
	}
	if control == nil {
		return "", errors.New("read Debian package: it has no control file")
	}
	return string(control), nil
}

// kernelFile matches what of a kernel package is used: the kernel, and all
// that stands in the modules' directory, which Debian 13 has below /usr.
var kernelFile = regexp.MustCompile(`^(boot/(vmlinuz|vmlinux|Image)-[^/]+|(usr/)?lib/modules/[^/]+/(.+/)?[^/]+\.ko(\.[a-z0-9]+)?|(usr/)?lib/modules/[^/]+/modules\.(dep|builtin))$`)

// unpackDeb writes the kernel and the modules in a Debian package to below
// dir, which has to be empty: boot/vmlinuz-VERSION, lib/modules/VERSION/...
func unpackDeb(ctx context.Context, file, dir string) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	return walkDeb(file, "data.tar", func(h *tar.Header, r io.Reader) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		name := path.Clean(h.Name)
		if h.Typeflag != tar.TypeReg || !kernelFile.MatchString(name) {
			return nil
		}
		return unpackFile(root, strings.TrimPrefix(name, "usr/"), r)
	})
}

func unpackFile(root *os.Root, name string, r io.Reader) error {
	if err := root.MkdirAll(filepath.Dir(name), 0o700); err != nil {
		return err
	}
	f, err := root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	if _, err := io.Copy(f, r); err != nil {
		f.Close()
		return err
	}
	return f.Close()
}
