// Package initramfs writes the archive a guest boots from: the agent as
// /init, the kernel modules in the order in which it loads them, and the few
// nodes and directories it needs before it has mounted anything.
package initramfs

import (
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"

	"github.com/u-root/u-root/pkg/cpio"
)

// LoadList is the file in the archive that lists the paths of the modules, a
// line each, in load order.
const LoadList = "/modules/load.txt"

// Limits on what Read takes from a file. Both are some ten times what there
// is in practice.
const (
	maxModules    = 256
	maxModuleSize = 64 << 20
)

// moduleName is what the kernel itself calls a module: no dashes.
var moduleName = regexp.MustCompile(`^[a-z0-9_]{1,56}$`)

// Module is a kernel module.
type Module struct {
	// Name is the module's name as in /proc/modules, such as "virtio_blk".
	Name string
	// Data is the module's ELF file, not compressed.
	Data []byte
}

// Spec is what differs between one archive and another.
type Spec struct {
	// Agent is the program that becomes PID 1: a static ELF file. Required.
	Agent []byte
	// Modules are in load order: each stands behind those it depends on.
	Modules []Module
}

// Write writes the archive: newc cpio, not compressed, and the same bytes for
// the same Spec (times are 0, inode numbers count up from 1).
func Write(w io.Writer, spec Spec) error {
	if err := spec.check(); err != nil {
		return fmt.Errorf("write initramfs: %w", err)
	}
	out := cpio.Newc.Writer(w)
	for i, r := range spec.records() {
		r.Ino = uint64(i + 1)
		if err := out.WriteRecord(r); err != nil {
			return fmt.Errorf("write initramfs: %s: %w", r.Name, err)
		}
	}
	if err := out.WriteRecord(cpio.TrailerRecord); err != nil {
		return fmt.Errorf("write initramfs: trailer: %w", err)
	}
	return nil
}

func (s Spec) check() error {
	if len(s.Agent) == 0 {
		return errors.New("no agent")
	}
	if len(s.Modules) > maxModules {
		return fmt.Errorf("%d modules, at most %d", len(s.Modules), maxModules)
	}
	seen := make(map[string]bool, len(s.Modules))
	for _, m := range s.Modules {
		switch {
		case !moduleName.MatchString(m.Name):
			return fmt.Errorf("module name %q is malformed", m.Name)
		case seen[m.Name]:
			return fmt.Errorf("module %s is there twice", m.Name)
		case len(m.Data) == 0 || len(m.Data) > maxModuleSize:
			return fmt.Errorf("module %s has %d bytes", m.Name, len(m.Data))
		}
		seen[m.Name] = true
	}
	return nil
}

// records are sorted by name, which puts directories before what is in them:
// the kernel's unpacker makes no parents.
func (s Spec) records() []cpio.Record {
	records := []cpio.Record{
		file("init", s.Agent, 0o755),
		dir("dev"),
		// The kernel opens /dev/console for init before devtmpfs is mounted.
		node("dev/console", 0o600, 5, 1),
		node("dev/null", 0o666, 1, 3),
		dir("mnt"),
		dir("modules"),
		dir("proc"),
		dir("sys"),
		file(LoadList[1:], s.loadList(), 0o444),
	}
	for _, m := range s.Modules {
		records = append(records, file(m.path()[1:], m.Data, 0o444))
	}
	slices.SortFunc(records, func(a, b cpio.Record) int { return strings.Compare(a.Name, b.Name) })
	return records
}

func (s Spec) loadList() []byte {
	var b strings.Builder
	for _, m := range s.Modules {
		b.WriteString(m.path() + "\n")
	}
	return []byte(b.String())
}

func (m Module) path() string { return "/modules/" + m.Name + ".ko" }

func file(name string, data []byte, perm uint64) cpio.Record {
	return cpio.StaticRecord(data, cpio.Info{Name: name, Mode: cpio.S_IFREG | perm, NLink: 1})
}

func dir(name string) cpio.Record {
	r := cpio.Directory(name, 0o755)
	r.NLink = 2
	return r
}

func node(name string, perm, major, minor uint64) cpio.Record {
	r := cpio.CharDev(name, perm, major, minor)
	r.NLink = 1
	return r
}

// Read returns what an archive made by Write was made from.
func Read(r io.ReaderAt) (Spec, error) {
	files, err := readFiles(r)
	if err != nil {
		return Spec{}, fmt.Errorf("read initramfs: %w", err)
	}
	spec := Spec{Agent: files["init"]}
	list, ok := files[LoadList[1:]]
	if !ok {
		return Spec{}, errors.New("read initramfs: it has no load list")
	}
	for path := range strings.Lines(string(list)) {
		path = strings.TrimSuffix(path, "\n")
		name := strings.TrimSuffix(strings.TrimPrefix(path, "/modules/"), ".ko")
		m := Module{Name: name, Data: files[strings.TrimPrefix(path, "/")]}
		if m.path() != path {
			return Spec{}, fmt.Errorf("read initramfs: load list: path %q is malformed", path)
		}
		spec.Modules = append(spec.Modules, m)
	}
	if err := spec.check(); err != nil {
		return Spec{}, fmt.Errorf("read initramfs: %w", err)
	}
	return spec, nil
}

// readFiles returns the archive's regular files by name.
func readFiles(r io.ReaderAt) (map[string][]byte, error) {
	files := make(map[string][]byte)
	in := cpio.Newc.Reader(r)
	for range maxModules + 16 {
		rec, err := in.ReadRecord()
		if errors.Is(err, io.EOF) {
			return files, nil
		}
		if err != nil {
			return nil, err
		}
		if rec.Mode&cpio.S_IFMT != cpio.S_IFREG {
			continue
		}
		if files[rec.Name], err = readFile(rec); err != nil {
			return nil, fmt.Errorf("%s: %w", rec.Name, err)
		}
	}
	return nil, errors.New("too many files")
}

func readFile(rec cpio.Record) ([]byte, error) {
	if rec.FileSize > maxModuleSize {
		return nil, fmt.Errorf("%d bytes, at most %d", rec.FileSize, maxModuleSize)
	}
	data := make([]byte, rec.FileSize)
	if n, err := rec.ReadAt(data, 0); n < len(data) {
		return nil, fmt.Errorf("read %d of %d bytes: %w", n, len(data), err)
	}
	return data, nil
}
