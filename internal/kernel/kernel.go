// Package kernel makes the pair of files a guest boots from: an ELF vmlinux
// (an Image on arm64) taken out of whatever form a distribution ships it in,
// and an initramfs with the agent and the modules the kernel needs.
package kernel

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"

	"github.com/vmsan/vmsan/api"
	"github.com/vmsan/vmsan/internal/initramfs"
	"github.com/vmsan/vmsan/internal/scratch"
	"github.com/vmsan/vmsan/internal/store"
)

// recordVersion is the version of kernel.json. Kernels of version 1 lack
// modules that restored guests need.
const recordVersion = 2

// maxRecord bounds kernel.json in bytes.
const maxRecord = 1 << 20

// The files in a kernel's directory.
const (
	vmlinuxName   = "vmlinux"
	initramfsName = "initramfs"
	recordName    = "kernel.json"
)

var digestForm = regexp.MustCompile(`^[0-9a-f]{64}$`)

// Kernel describes an installed kernel. It is what kernel.json holds.
type Kernel struct {
	// Format is the version of this record.
	Format int `json:"format"`
	// Digest names the kernel's directory: hexadecimal SHA-256 over the
	// digests of vmlinux and initramfs, so that it covers kernel, modules
	// and agent.
	Digest string `json:"digest"`
	// Version is what uname -r will say in the guest.
	Version string `json:"version"`
	// Arch is the kernel's architecture in Go's words: amd64 or arm64.
	Arch string `json:"arch"`
	// PVH tells whether an x86 kernel can be entered without firmware,
	// which QEMU's microvm machine does.
	PVH bool `json:"pvh"`
	// Source tells where the kernel came from.
	Source Source `json:"source"`
	// Modules are the modules in the initramfs, in load order.
	Modules []string `json:"modules"`
	// AgentDigest is the hexadecimal SHA-256 of the agent.
	AgentDigest string `json:"agent_digest"`
	Vmlinux     File   `json:"vmlinux"`
	Initramfs   File   `json:"initramfs"`
}

// Current tells whether k has all that guests of this vmsan need. One that is
// not still starts the sandboxes that were made with it.
func (k Kernel) Current() bool { return k.Format == recordVersion }

// File is a file's size in bytes and its hexadecimal SHA-256.
type File struct {
	Size   int64  `json:"size"`
	SHA256 string `json:"sha256"`
}

// Source tells where a kernel came from.
type Source struct {
	// Kind is "apt", "deb" or "file".
	Kind string `json:"kind"`
	// Name is a package and version, or a file's path.
	Name string `json:"name"`
	// SHA256 is the hexadecimal digest of the package or file.
	SHA256 string `json:"sha256"`
}

// VmlinuxPath is where the kernel with that digest is.
func VmlinuxPath(l store.Layout, digest string) string {
	return filepath.Join(l.Kernel(digest), vmlinuxName)
}

// InitramfsPath is where the initramfs of the kernel with that digest is.
func InitramfsPath(l store.Layout, digest string) string {
	return filepath.Join(l.Kernel(digest), initramfsName)
}

// parts are what a kernel is made from.
type parts struct {
	image   image
	source  Source
	modules []initramfs.Module
}

// InstallFile installs the kernel in a file: an ELF vmlinux, a bzImage, an
// arm64 Image, or one of these compressed. Modules are taken from the tree
// the file lies in: lib/modules/VERSION beside the file's directory, which is
// where they are for /boot/vmlinuz-VERSION. If there are none, the kernel
// has to have all it needs built in.
func InstallFile(ctx context.Context, l store.Layout, path string, agent []byte) (Kernel, error) {
	p, err := partsOfFile(path)
	if err != nil {
		return Kernel{}, fmt.Errorf("install kernel %s: %w", path, err)
	}
	return install(ctx, l, p, agent)
}

// InstallDeb installs the kernel in a Debian kernel package.
func InstallDeb(ctx context.Context, l store.Layout, path string, agent []byte) (Kernel, error) {
	source := Source{Kind: "deb", Name: path}
	k, err := installDeb(ctx, l, path, source, agent)
	if err != nil {
		return Kernel{}, fmt.Errorf("install kernel package %s: %w", path, err)
	}
	return k, nil
}

// InstallApt installs the newest cloud kernel that apt knows. The package is
// fetched and unpacked in the state directory; nothing is installed on the
// host and apt's own lists stay as they are.
func InstallApt(ctx context.Context, l store.Layout, agent []byte) (Kernel, error) {
	dir, err := scratch.New(l.Tmp(), "kernel-apt")
	if err != nil {
		return Kernel{}, err
	}
	defer dir.Close()
	path, source, err := download(ctx, dir.Path)
	if err != nil {
		return Kernel{}, fmt.Errorf("download kernel: %w", err)
	}
	k, err := installDeb(ctx, l, path, source, agent)
	if err != nil {
		return Kernel{}, fmt.Errorf("install kernel package %s: %w", source.Name, err)
	}
	return k, nil
}

func installDeb(ctx context.Context, l store.Layout, path string, source Source, agent []byte) (Kernel, error) {
	dir, err := scratch.New(l.Tmp(), "kernel-deb")
	if err != nil {
		return Kernel{}, err
	}
	defer dir.Close()
	if source.SHA256, err = FileDigest(path); err != nil {
		return Kernel{}, invalid(err)
	}
	if err := unpackDeb(ctx, path, dir.Path); err != nil {
		return Kernel{}, invalid(err)
	}
	p, err := partsOfTree(dir.Path)
	if err != nil {
		return Kernel{}, err
	}
	p.source = source
	return install(ctx, l, p, agent)
}

// WithAgent installs a kernel made of k's vmlinux and modules and another
// agent. It needs nothing but what k left in the state directory.
func WithAgent(ctx context.Context, l store.Layout, k Kernel, agent []byte) (Kernel, error) {
	p, err := partsOfInstalled(l, k)
	if err != nil {
		return Kernel{}, fmt.Errorf("give kernel %s a new agent: %w", k.Version, err)
	}
	return install(ctx, l, p, agent)
}

func partsOfInstalled(l store.Layout, k Kernel) (parts, error) {
	data, err := os.ReadFile(VmlinuxPath(l, k.Digest))
	if err != nil {
		return parts{}, err
	}
	img, err := inspect(data)
	if err != nil {
		return parts{}, invalid(err)
	}
	f, err := os.Open(InitramfsPath(l, k.Digest))
	if err != nil {
		return parts{}, err
	}
	defer f.Close()
	spec, err := initramfs.Read(f)
	if err != nil {
		return parts{}, err
	}
	return parts{image: img, source: k.Source, modules: spec.Modules}, nil
}

// install writes a kernel's directory aside and renames it into place, so
// that one which is there is complete.
func install(ctx context.Context, l store.Layout, p parts, agent []byte) (Kernel, error) {
	if err := ctx.Err(); err != nil {
		return Kernel{}, err
	}
	if err := checkArch(p.image.arch); err != nil {
		return Kernel{}, err
	}
	var err error
	if p.modules, err = trimAll(p.modules); err != nil {
		return Kernel{}, invalid(err)
	}
	dir, err := scratch.New(l.Tmp(), "kernel")
	if err != nil {
		return Kernel{}, err
	}
	defer dir.Close()
	k, err := write(dir.Join("made"), p, agent)
	if err != nil {
		return Kernel{}, scratch.Explain(fmt.Errorf("write kernel %s: %w", p.image.version, err))
	}
	if there, err := Check(l, k.Digest); err == nil {
		return there, nil
	}
	return k, dir.Publish("made", l.Kernel(k.Digest))
}

func write(dir string, p parts, agent []byte) (Kernel, error) {
	if err := os.Mkdir(dir, 0o755); err != nil {
		return Kernel{}, err
	}
	k := Kernel{
		Format:      recordVersion,
		Version:     p.image.version,
		Arch:        p.image.arch,
		PVH:         p.image.pvh,
		Source:      p.source,
		AgentDigest: hexSum(agent),
	}
	for _, m := range p.modules {
		k.Modules = append(k.Modules, m.Name)
	}
	var err error
	k.Vmlinux, err = writeFile(filepath.Join(dir, vmlinuxName), func(w io.Writer) error {
		_, err := w.Write(p.image.data)
		return err
	})
	if err != nil {
		return Kernel{}, err
	}
	k.Initramfs, err = writeFile(filepath.Join(dir, initramfsName), func(w io.Writer) error {
		return initramfs.Write(w, initramfs.Spec{Agent: agent, Modules: p.modules})
	})
	if err != nil {
		return Kernel{}, err
	}
	k.Digest = k.digest()
	_, err = writeFile(filepath.Join(dir, recordName), func(w io.Writer) error {
		e := json.NewEncoder(w)
		e.SetIndent("", "  ")
		return e.Encode(k)
	})
	return k, err
}

func (k Kernel) digest() string {
	return hexSum([]byte(k.Vmlinux.SHA256 + k.Initramfs.SHA256))
}

// writeFile makes a read-only file of what fill writes, and has it on disk.
func writeFile(path string, fill func(io.Writer) error) (File, error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o444)
	if err != nil {
		return File{}, err
	}
	defer f.Close()
	sum := sha256.New()
	count := &counter{}
	if err := fill(io.MultiWriter(f, sum, count)); err != nil {
		return File{}, err
	}
	// The umask may have taken rights away that other uids need.
	if err := f.Chmod(0o444); err != nil {
		return File{}, err
	}
	if err := f.Sync(); err != nil {
		return File{}, err
	}
	return File{Size: count.n, SHA256: hex.EncodeToString(sum.Sum(nil))}, nil
}

type counter struct{ n int64 }

func (c *counter) Write(p []byte) (int, error) {
	c.n += int64(len(p))
	return len(p), nil
}

// Load reads the record of the kernel with that digest. An error that is
// fs.ErrNotExist means that there is none.
func Load(l store.Layout, digest string) (Kernel, error) {
	k, err := load(l, digest)
	if err != nil {
		return Kernel{}, fmt.Errorf("load kernel %.12s: %w", digest, err)
	}
	return k, nil
}

func load(l store.Layout, digest string) (Kernel, error) {
	if !digestForm.MatchString(digest) {
		return Kernel{}, errors.New("malformed digest")
	}
	data, err := readBounded(filepath.Join(l.Kernel(digest), recordName), maxRecord)
	if err != nil {
		return Kernel{}, err
	}
	var k Kernel
	if err := json.Unmarshal(data, &k); err != nil {
		return Kernel{}, err
	}
	if k.Format < 1 || k.Format > recordVersion {
		return Kernel{}, fmt.Errorf("record has format %d, this vmsan reads %d", k.Format, recordVersion)
	}
	if k.Digest != digest || k.digest() != digest {
		return Kernel{}, errors.New("record is another kernel's")
	}
	return k, nil
}

// Check loads a kernel's record and hashes its files, some 70 MB.
func Check(l store.Layout, digest string) (Kernel, error) {
	k, err := Load(l, digest)
	if err != nil {
		return Kernel{}, err
	}
	for path, want := range map[string]File{
		VmlinuxPath(l, digest):   k.Vmlinux,
		InitramfsPath(l, digest): k.Initramfs,
	} {
		got, err := FileDigest(path)
		if err != nil {
			return Kernel{}, fmt.Errorf("check kernel %s: %w", k.Version, err)
		}
		if got != want.SHA256 {
			return Kernel{}, api.Errorf(api.ErrKernelInvalid, "check kernel %s: %s is not what it was when it was installed", k.Version, path).
				WithHint("vmsan setup")
		}
	}
	return k, nil
}

// List returns the digests of all kernels, sorted.
func List(l store.Layout) ([]string, error) {
	entries, err := os.ReadDir(l.Kernels())
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("list kernels: %w", err)
	}
	var digests []string
	for _, e := range entries {
		if digestForm.MatchString(e.Name()) {
			digests = append(digests, e.Name())
		}
	}
	return digests, nil
}

// Remove removes a kernel, which nothing may use any more, in one step. One
// that is not there is removed already.
func Remove(l store.Layout, digest string) error {
	if !digestForm.MatchString(digest) {
		return fmt.Errorf("remove kernel %.12q: malformed digest", digest)
	}
	dir, err := scratch.New(l.Tmp(), "kernel-rm")
	if err != nil {
		return err
	}
	err = os.Rename(l.Kernel(digest), dir.Join("gone"))
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	return errors.Join(err, dir.Close())
}

// FileDigest is the hexadecimal SHA-256 of a file.
func FileDigest(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	sum := sha256.New()
	if _, err := io.Copy(sum, f); err != nil {
		return "", err
	}
	return hex.EncodeToString(sum.Sum(nil)), nil
}

func hexSum(data []byte) string {
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}

// readBounded reads a regular file of at most limit bytes.
func readBounded(path string, limit int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a regular file", path)
	}
	return readAtMost(f, limit)
}

// readAtMost reads all of r, or fails if that is more than limit bytes.
func readAtMost(r io.Reader, limit int64) ([]byte, error) {
	var b bytes.Buffer
	n, err := b.ReadFrom(io.LimitReader(r, limit+1))
	if err != nil {
		return nil, err
	}
	if n > limit {
		return nil, fmt.Errorf("more than %d bytes", limit)
	}
	return b.Bytes(), nil
}
