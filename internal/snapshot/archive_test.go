package snapshot

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/google/go-cmp/cmp"
	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"

	"github.com/vmsan/vmsan/api"
)

func exported(t testing.TB) (Manifest, []byte) {
	t.Helper()
	s := newStore(t)
	m := publish(t, s, example())
	var out bytes.Buffer
	if err := s.Export(t.Context(), m.ID, &out); err != nil {
		t.Fatal(err)
	}
	return m, out.Bytes()
}

func TestImport(t *testing.T) {
	source, archive := exported(t)
	s := newStore(t)
	got, err := s.Import(t.Context(), bytes.NewReader(archive), "")
	if err != nil {
		t.Fatal(err)
	}
	if got.ID == source.ID {
		t.Error("the id was taken over")
	}
	want := source
	want.ID = got.ID
	if diff := cmp.Diff(got, want); diff != "" {
		t.Errorf("got the first, want the second:\n%s", diff)
	}
	if err := s.Verify(t.Context(), got.ID); err != nil {
		t.Error(err)
	}
	var st unix.Stat_t
	if err := unix.Stat(filepath.Join(s.path(got.ID), MemoryFile), &st); err != nil {
		t.Fatal(err)
	}
	if stored := st.Blocks * 512; stored > 200<<10 {
		t.Errorf("the memory takes %d bytes", stored)
	}
	if _, err := s.Import(t.Context(), bytes.NewReader(archive), ""); !api.HasCode(err, api.ErrSnapshotNameTaken) {
		t.Errorf("again: got %v, want that the name is taken", err)
	}
	if m, err := s.Import(t.Context(), bytes.NewReader(archive), "two"); err != nil || m.Name != "two" {
		t.Errorf("under another name: got %q, %v", m.Name, err)
	}
}

// repack changes an archive's entries and compresses them again.
func repack(t testing.TB, archive []byte, change func(headers []*tar.Header, bodies [][]byte) ([]*tar.Header, [][]byte)) []byte {
	t.Helper()
	plain, err := zstd.NewReader(bytes.NewReader(archive))
	if err != nil {
		t.Fatal(err)
	}
	defer plain.Close()
	var headers []*tar.Header
	var bodies [][]byte
	for r := tar.NewReader(plain); ; {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		headers, bodies = append(headers, h), append(bodies, body)
	}
	headers, bodies = change(headers, bodies)
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for i, h := range headers {
		h.Size = int64(len(bodies[i]))
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(bodies[i]); err != nil {
			t.Fatal(err)
		}
	}
	w.Close()
	return compress(t, out.Bytes())
}

func compress(t testing.TB, plain []byte) []byte {
	t.Helper()
	w, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	return w.EncodeAll(plain, nil)
}

type entries = func([]*tar.Header, [][]byte) ([]*tar.Header, [][]byte)

// body changes one entry's.
func body(at int, change func([]byte) []byte) entries {
	return func(h []*tar.Header, b [][]byte) ([]*tar.Header, [][]byte) {
		b[at] = change(b[at])
		return h, b
	}
}

func manifest(change func(*Manifest)) entries {
	return body(0, func(b []byte) []byte {
		var m Manifest
		json.Unmarshal(b, &m)
		change(&m)
		b, _ = json.Marshal(m)
		return b
	})
}

func file(name string, change func(*File)) entries {
	return manifest(func(m *Manifest) {
		f := m.Files[name]
		change(&f)
		m.Files[name] = f
	})
}

// The order of entries in an archive.
const (
	manifestEntry = iota
	stateEntry
	memoryEntry
	overlayEntry
)

func TestImportRefuses(t *testing.T) {
	_, archive := exported(t)
	changed := map[string]entries{
		"no entries":     func([]*tar.Header, [][]byte) ([]*tar.Header, [][]byte) { return nil, nil },
		"a file missing": func(h []*tar.Header, b [][]byte) ([]*tar.Header, [][]byte) { return h[:3], b[:3] },
		"a file twice":   func(h []*tar.Header, b [][]byte) ([]*tar.Header, [][]byte) { return append(h, h[3]), append(b, b[3]) },
		"manifest twice": func(h []*tar.Header, b [][]byte) ([]*tar.Header, [][]byte) { return append(h, h[0]), append(b, b[0]) },
		"another order": func(h []*tar.Header, b [][]byte) ([]*tar.Header, [][]byte) {
			h[1], h[2], b[1], b[2] = h[2], h[1], b[2], b[1]
			return h, b
		},
		"unknown entry": func(h []*tar.Header, b [][]byte) ([]*tar.Header, [][]byte) {
			return append(h, &tar.Header{Name: "evil"}), append(b, nil)
		},
		"a path":          func(h []*tar.Header, b [][]byte) ([]*tar.Header, [][]byte) { h[1].Name = "../state"; return h, b },
		"an absolute one": func(h []*tar.Header, b [][]byte) ([]*tar.Header, [][]byte) { h[1].Name = "/state"; return h, b },
		"a link": func(h []*tar.Header, b [][]byte) ([]*tar.Header, [][]byte) {
			h[1].Typeflag, h[1].Linkname, b[1] = tar.TypeSymlink, "/etc/passwd", nil
			return h, b
		},
		"a directory": func(h []*tar.Header, b [][]byte) ([]*tar.Header, [][]byte) {
			h[1].Typeflag, b[1] = tar.TypeDir, nil
			return h, b
		},

		"another byte":        body(memoryEntry, func(b []byte) []byte { b[indexSize+5] ^= 1; return b }),
		"another place":       body(overlayEntry, func(b []byte) []byte { binary.BigEndian.PutUint64(b, 0); return b }),
		"a place outside":     body(overlayEntry, func(b []byte) []byte { binary.BigEndian.PutUint64(b, 1<<63|9); return b }),
		"the same place":      body(memoryEntry, func(b []byte) []byte { copy(b[indexSize+Chunk:], b[:indexSize]); return b }),
		"a chunk more":        body(memoryEntry, func(b []byte) []byte { return append(b, b[:indexSize+Chunk]...) }),
		"a chunk less":        body(memoryEntry, func(b []byte) []byte { return b[indexSize+Chunk:] }),
		"zeros stored":        body(memoryEntry, func(b []byte) []byte { clear(b[indexSize:][:Chunk]); return b }),
		"no manifest":         body(manifestEntry, func([]byte) []byte { return nil }),
		"endless manifest":    body(manifestEntry, func([]byte) []byte { return bytes.Repeat([]byte(" "), maxManifest+1) }),
		"deep manifest":       body(manifestEntry, func([]byte) []byte { return bytes.Repeat([]byte("["), 100_000) }),
		"a name with a path":  manifest(func(m *Manifest) { m.Name = "../../etc" }),
		"an id with a path":   manifest(func(m *Manifest) { m.ID = "../../etc" }),
		"an escape":           manifest(func(m *Manifest) { m.SourceName = "\x1b[2J" }),
		"a long text":         manifest(func(m *Manifest) { m.Host.CPU = strings.Repeat("x", 10_000) }),
		"no CPUs":             manifest(func(m *Manifest) { m.VCPUs = 0 }),
		"a file too many":     manifest(func(m *Manifest) { m.Files["evil"] = m.Files[StateFile] }),
		"a file too few":      manifest(func(m *Manifest) { delete(m.Files, StateFile) }),
		"newer":               manifest(func(m *Manifest) { m.Format = 2 }),
		"another digest":      file(StateFile, func(f *File) { f.Digest = strings.Repeat("0", 64) }),
		"no digest":           file(StateFile, func(f *File) { f.Digest = "" }),
		"a negative size":     file(StateFile, func(f *File) { f.Size = -1 }),
		"a huge size":         file(StateFile, func(f *File) { f.Size, f.Stored = 1<<62, 0 }),
		"more than there is":  file(StateFile, func(f *File) { f.Stored = 1 << 40 }),
		"size of another":     file(OverlayFile, func(f *File) { f.Size += 4096 }),
		"less than is stored": file(MemoryFile, func(f *File) { f.Stored -= Chunk }),
	}
	hostile := map[string][]byte{
		"nothing":        nil,
		"no zstd":        []byte("this is not an archive"),
		"no tar":         compress(t, []byte(strings.Repeat("x", 10_000))),
		"cut short":      archive[:len(archive)/2],
		"without end":    archive[:len(archive)-3],
		"something more": append(bytes.Clone(archive), compress(t, []byte("more"))...),
		"bomb behind it": append(bytes.Clone(archive), compress(t, make([]byte, 64<<20))...),
	}
	for name, change := range changed {
		hostile[name] = repack(t, archive, change)
	}
	for name, archive := range hostile {
		t.Run(name, func(t *testing.T) {
			s := newStore(t)
			if m, err := s.Import(t.Context(), bytes.NewReader(archive), ""); !api.HasCode(err, api.ErrSnapshotInvalid) {
				t.Errorf("got %v, %v, want that it is invalid", m.ID, err)
			} else {
				t.Log(err)
			}
			checkEmpty(t, s)
		})
	}
}

// A disk that the archive says is full of data does not fit, however well it
// is compressed.
func TestImportOfBomb(t *testing.T) {
	_, archive := exported(t)
	archive = repack(t, archive, manifest(func(m *Manifest) {
		m.DiskBytes = 16 << 40
		m.Files[OverlayFile] = File{Size: 16 << 40, Stored: 16 << 40, Digest: strings.Repeat("0", 64)}
	}))
	s := newStore(t)
	if _, err := s.Import(t.Context(), bytes.NewReader(archive), ""); !api.HasCode(err, api.ErrDiskFull) {
		t.Errorf("got %v, want that the disk is full", err)
	}
	checkEmpty(t, s)
}

func TestImportOfBrokenStream(t *testing.T) {
	_, archive := exported(t)
	s := newStore(t)
	broken := errors.New("the network is gone")
	r := io.MultiReader(bytes.NewReader(archive[:len(archive)-10]), iotest.ErrReader(broken))
	if _, err := s.Import(t.Context(), r, ""); !errors.Is(err, broken) {
		t.Errorf("got %v", err)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	gaveUp := errors.New("gave up")
	cancel(gaveUp)
	if _, err := s.Import(ctx, bytes.NewReader(archive), ""); !errors.Is(err, gaveUp) {
		t.Errorf("got %v", err)
	}
	checkEmpty(t, s)
}

func TestExportToFullDisk(t *testing.T) {
	s := newStore(t)
	m := publish(t, s, example())
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer full.Close()
	if err := s.Export(t.Context(), m.ID, full); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("got %v", err)
	}
}

// tinyArchive is of a snapshot that is quick to import.
func tinyArchive(f *testing.F) []byte {
	f.Helper()
	s := newStore(f)
	d, err := s.New()
	if err != nil {
		f.Fatal(err)
	}
	defer d.Close()
	for name, text := range map[string][]byte{MemoryFile: make([]byte, 1<<20), StateFile: []byte("state"), OverlayFile: []byte("disk")} {
		if err := os.WriteFile(d.Path(name), text, 0o600); err != nil {
			f.Fatal(err)
		}
		d.Done(f.Context(), name)
	}
	m := example()
	m.DiskBytes = 4
	if m, err = d.Publish(f.Context(), m); err != nil {
		f.Fatal(err)
	}
	var out bytes.Buffer
	if err := s.Export(f.Context(), m.ID, &out); err != nil {
		f.Fatal(err)
	}
	return out.Bytes()
}

// FuzzImport has an archive's plain bytes: what comes of them is intact, or
// nothing.
func FuzzImport(f *testing.F) {
	archive := tinyArchive(f)
	plain, err := zstd.NewReader(bytes.NewReader(archive))
	if err != nil {
		f.Fatal(err)
	}
	defer plain.Close()
	whole, err := io.ReadAll(plain)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(whole)
	f.Add(whole[:1500])
	f.Add(archive)
	f.Fuzz(func(t *testing.T, plain []byte) {
		for _, archive := range [][]byte{compress(t, plain), plain} {
			s := newStore(t)
			m, err := s.Import(t.Context(), bytes.NewReader(archive), "")
			if err != nil {
				checkEmpty(t, s)
				continue
			}
			if err := s.Verify(t.Context(), m.ID); err != nil {
				t.Error(err)
			}
		}
	})
}

// FuzzParseManifest: what is taken can be written and read again.
func FuzzParseManifest(f *testing.F) {
	m, _ := exported(f)
	raw, err := json.Marshal(m)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(raw)
	f.Add([]byte(`{"format":1,"files":null}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		m, err := parseManifest(raw)
		if err != nil {
			return
		}
		again, err := json.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := parseManifest(again); err != nil {
			t.Errorf("%s is refused: %v", again, err)
		}
	})
}
