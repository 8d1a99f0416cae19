package filetree

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// describeTree says all that is to survive of a tree, by name.
func describeTree(t *testing.T, root string) map[string]string {
	t.Helper()
	tree := map[string]string{}
	inodes := map[uint64]string{}
	err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		info, err := entry.Info()
		if err != nil {
			return err
		}
		stat := info.Sys().(*syscall.Stat_t)
		text := fmt.Sprint(info.Mode())
		switch {
		case info.Mode()&fs.ModeSymlink != 0:
			target, err := os.Readlink(path)
			if err != nil {
				return err
			}
			text += " to " + target
		case info.Mode().IsRegular():
			content, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			text += fmt.Sprintf(" %.40q of %d", content, len(content))
			if first, ok := inodes[stat.Ino]; ok {
				text += " is " + first
			}
			inodes[stat.Ino] = name
		}
		if info.Mode()&fs.ModeSymlink == 0 {
			text += " " + info.ModTime().UTC().Format(time.RFC3339Nano)
			value := make([]byte, 100)
			if n, err := unix.Getxattr(path, "user.note", value); err == nil {
				text += " noted " + string(value[:n])
			}
		}
		tree[name] = text
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return tree
}

// must fails the test on an error.
func must(t *testing.T, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

func write(t *testing.T, path, content string, mode fs.FileMode) {
	t.Helper()
	must(t, os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(content), 0o600), os.Chmod(path, mode))
}

// carry packs a tree and unpacks it elsewhere.
func carry(t *testing.T, from, to, name string) (packed, unpacked Totals) {
	t.Helper()
	r, w := io.Pipe()
	go func() {
		var err error
		packed, err = Pack(t.Context(), w, from, PackOptions{Name: name})
		w.CloseWithError(err)
	}()
	unpacked, err := Unpack(t.Context(), r, to, UnpackOptions{Name: name, Owner: &Owner{os.Geteuid(), os.Getegid()}})
	must(t, err)
	if _, err := io.Copy(io.Discard, r); err != nil {
		t.Fatal(err)
	}
	return packed, unpacked
}

func TestRoundTrip(t *testing.T) {
	from, to := filepath.Join(t.TempDir(), "tree"), t.TempDir()
	write(t, from+"/plain", "content", 0o640)
	write(t, from+"/sub/deep/run", "#!/bin/sh", 0o755)
	write(t, from+"/sub/empty", "", 0o600)
	write(t, from+"/"+strings.Repeat("long", 60), strings.Repeat("x", copyBuffer+1), 0o644)
	write(t, from+"/sub/ümlaut\nnewline", "odd", 0o444)
	must(t,
		os.Symlink("../plain", from+"/sub/link"), os.Symlink("/nowhere", from+"/dangling"),
		os.Link(from+"/plain", from+"/sub/hard"),
		os.Truncate(from+"/sub/empty", 3*copyBuffer),
		unix.Setxattr(from+"/plain", "user.note", []byte("a\x00b"), 0),
		syscall.Mkfifo(from+"/pipe", 0o600),
		os.Chtimes(from+"/plain", time.Time{}, time.Unix(1234567890, 987654321)),
		os.Chtimes(from+"/sub/deep", time.Time{}, time.Unix(1000000000, 5)),
		os.Chmod(from+"/sub/deep", 0o500),
	)
	packed, unpacked := carry(t, from, to, "copy")
	want, got := describeTree(t, from), describeTree(t, to+"/copy")
	delete(want, "pipe")
	// The top's own time was changed by what the test made in it.
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if packed.Files != 8 || unpacked.Files != 8 || packed.Directories != 3 || packed.Skipped != 1 || packed.Bytes != unpacked.Bytes {
		t.Errorf("packed %+v, unpacked %+v", packed, unpacked)
	}
	var stat unix.Stat_t
	must(t, unix.Stat(to+"/copy/sub/empty", &stat))
	if stat.Blocks != 0 {
		t.Errorf("a file of zeros takes %d blocks", stat.Blocks)
	}
	// What is there is replaced, and what else is there stays.
	write(t, to+"/copy/plain", "older and longer", 0o600)
	write(t, to+"/copy/other", "other", 0o600)
	carry(t, from, to, "copy")
	got = describeTree(t, to+"/copy")
	if got["plain"] != want["plain"] || !strings.Contains(got["other"], "other") {
		t.Errorf("the second time: %s, %s", got["plain"], got["other"])
	}
}

// TestModes is of files of one mode after the other, in directories that give
// new ones others: by the umask, and by a default ACL.
func TestModes(t *testing.T) {
	from, to := filepath.Join(t.TempDir(), "tree"), t.TempDir()
	for i, mode := range []fs.FileMode{0o644, 0o666, 0o644, 0o666, 0o600, 0o644} {
		write(t, fmt.Sprintf("%s/open/%d", from, i), "x", mode)
		write(t, fmt.Sprintf("%s/shut/%d", from, i), "x", mode)
	}
	// Version 2: nobody but the owner (linux/posix_acl_xattr.h).
	private := []byte{2, 0, 0, 0}
	for _, entry := range [][2]byte{{0x01, 7}, {0x04, 0}, {0x20, 0}} {
		private = append(private, entry[0], 0, entry[1], 0, 0xff, 0xff, 0xff, 0xff)
	}
	must(t, os.MkdirAll(to+"/copy/shut", 0o755), unix.Setxattr(to+"/copy/shut", "system.posix_acl_default", private, 0))
	carry(t, from, to, "copy")
	if diff := cmp.Diff(describeTree(t, from), describeTree(t, to+"/copy")); diff != "" {
		t.Error(diff)
	}
}

// TestEarly has no file be open to a group before it is that group's, nor shut
// to its owner before all that takes is done.
func TestEarly(t *testing.T) {
	for mode, want := range map[fs.FileMode]bool{0o644: true, 0o755: true, 0o600: true, 0o444: true, 0o666: true, 0o640: false, 0o664: false, 0o770: false} {
		if got := (dress{mode: mode}).early(); got != want {
			t.Errorf("%v: %v", mode, got)
		}
	}
	if (dress{mode: 0o444, attributes: map[string]string{"user.note": "x"}}).early() {
		t.Error("a file with attributes cannot be written by its owner before it has them")
	}
}

func TestTops(t *testing.T) {
	from, to := t.TempDir(), t.TempDir()
	write(t, from+"/file", "one", 0o640)
	must(t, os.Symlink("file", from+"/link"))
	carry(t, from+"/link", to, "renamed")
	carry(t, from, to, ".")
	got := describeTree(t, to)
	for _, name := range []string{"renamed", "file", "link"} {
		if got[name] == "" {
			t.Errorf("no %s in %v", name, got)
		}
	}
	if strings.Contains(got["renamed"], " to ") {
		t.Errorf("the named link is still one: %s", got["renamed"])
	}
	if _, err := Pack(t.Context(), io.Discard, from+"/none", PackOptions{Name: "x"}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("packed what is not there: %v", err)
	}
	if totals, err := Pack(t.Context(), io.Discard, os.DevNull, PackOptions{Name: "x"}); err != nil || totals.Skipped != 1 {
		t.Errorf("a device: %+v, %v", totals, err)
	}
	var b bytes.Buffer
	if totals, err := Pack(t.Context(), &b, "/proc/version", PackOptions{Name: "version"}); err != nil || totals.Bytes == 0 {
		t.Errorf("a file of /proc: %+v, %v", totals, err)
	}
}

// archive is a stream of entries with the content "evil".
func archive(headers ...tar.Header) []byte {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range headers {
		if h.Mode == 0 {
			h.Mode = 0o644
		}
		if h.Typeflag == tar.TypeReg {
			h.Size = 4
		}
		if err := w.WriteHeader(&h); err != nil {
			panic(err)
		}
		if h.Typeflag == tar.TypeReg {
			io.WriteString(w, "evil")
		}
	}
	w.Close()
	return b.Bytes()
}

// hostile streams try to write to a file named victim beside the directory
// they are unpacked in.
var hostile = map[string][]byte{
	"parent":             archive(tar.Header{Typeflag: tar.TypeReg, Name: "../victim"}),
	"parent, hidden":     archive(tar.Header{Typeflag: tar.TypeReg, Name: "a/../../victim"}),
	"absolute":           archive(tar.Header{Typeflag: tar.TypeReg, Name: "/victim"}),
	"through a link":     archive(tar.Header{Typeflag: tar.TypeSymlink, Name: "l", Linkname: ".."}, tar.Header{Typeflag: tar.TypeReg, Name: "l/victim"}),
	"over a link":        archive(tar.Header{Typeflag: tar.TypeSymlink, Name: "l", Linkname: "../victim"}, tar.Header{Typeflag: tar.TypeReg, Name: "l"}),
	"hard link out":      archive(tar.Header{Typeflag: tar.TypeLink, Name: "l", Linkname: "../victim"}, tar.Header{Typeflag: tar.TypeReg, Name: "l"}),
	"hard link by link":  archive(tar.Header{Typeflag: tar.TypeSymlink, Name: "d", Linkname: ".."}, tar.Header{Typeflag: tar.TypeLink, Name: "l", Linkname: "d/victim"}),
	"directory by link":  archive(tar.Header{Typeflag: tar.TypeSymlink, Name: "d", Linkname: ".."}, tar.Header{Typeflag: tar.TypeDir, Name: "d/made", Mode: 0o777}),
	"mode by link":       archive(tar.Header{Typeflag: tar.TypeDir, Name: "d"}, tar.Header{Typeflag: tar.TypeSymlink, Name: "d", Linkname: "../victim"}),
	"no name":            archive(tar.Header{Typeflag: tar.TypeReg, Name: "."}),
	"link to a link out": archive(tar.Header{Typeflag: tar.TypeSymlink, Name: "a", Linkname: "b"}, tar.Header{Typeflag: tar.TypeSymlink, Name: "b", Linkname: ".."}, tar.Header{Typeflag: tar.TypeReg, Name: "a/victim"}),
	"deep":               archive(tar.Header{Typeflag: tar.TypeDir, Name: strings.Repeat("a/", maxDepth+1)}),
	"cut short":          archive(tar.Header{Typeflag: tar.TypeReg, Name: "x"})[:514],
	"too large":          tooLarge(),
	"large attributes":   archive(tar.Header{Typeflag: tar.TypeReg, Name: "x", Format: tar.FormatPAX, PAXRecords: map[string]string{"SCHILY.xattr.user.x": strings.Repeat("x", maxAttributes)}}),
}

// manyDirectories names one again and again, with words for each that have to
// be kept until the end.
func manyDirectories() []byte {
	words := map[string]string{"SCHILY.xattr.user.x": strings.Repeat("x", 60<<10)}
	var headers []tar.Header
	for range maxRemembered/(60<<10) + 1 {
		headers = append(headers, tar.Header{Typeflag: tar.TypeDir, Name: "d", Format: tar.FormatPAX, PAXRecords: words})
	}
	return archive(headers...)
}

// tooLarge says that it holds more than any file can, without sending it: a
// sparse file of the old GNU format.
func tooLarge() []byte {
	b := archive(tar.Header{Typeflag: tar.TypeReg, Name: "x", Format: tar.FormatGNU})
	h := b[:512]
	h[156] = 'S'
	binary := func(at []byte, n uint64) {
		clear(at)
		at[0] = 0x80
		for i := len(at) - 1; n > 0; i, n = i-1, n>>8 {
			at[i] = byte(n)
		}
	}
	binary(h[386:398], 0)
	binary(h[398:410], 4)
	binary(h[410:422], 1<<62)
	binary(h[422:434], 0)
	binary(h[483:495], 1<<62)
	copy(h[148:156], "        ")
	sum := 0
	for _, c := range h {
		sum += int(c)
	}
	copy(h[148:156], fmt.Sprintf("%06o\x00 ", sum))
	return b
}

func TestHostile(t *testing.T) {
	streams := maps.Clone(hostile)
	streams["many directories"] = manyDirectories()
	for name, stream := range streams {
		t.Run(name, func(t *testing.T) {
			parent := t.TempDir()
			write(t, parent+"/victim", "good", 0o600)
			inside := parent + "/inside"
			must(t, os.Mkdir(inside, 0o755))
			_, err := Unpack(t.Context(), bytes.NewReader(stream), inside, UnpackOptions{Owner: &Owner{os.Geteuid(), os.Getegid()}})
			if err == nil && name != "over a link" {
				t.Error("no error")
			}
			checkOutside(t, parent)
			for file := range describeTree(t, inside) {
				if strings.HasPrefix(filepath.Base(file), ".vmsan-") {
					t.Errorf("%s is left", file)
				}
			}
		})
	}
}

// A file does not take a directory's place, and is named.
func TestOverDirectory(t *testing.T) {
	for _, size := range []int64{1, 2 * copyBuffer} {
		dir := t.TempDir()
		must(t, os.MkdirAll(dir+"/sub/taken", 0o755))
		var stream bytes.Buffer
		w := tar.NewWriter(&stream)
		must(t, w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "sub/taken", Size: size, Mode: 0o644}))
		_, err := w.Write(bytes.Repeat([]byte("x"), int(size)))
		must(t, err)
		must(t, w.Close())
		_, err = Unpack(t.Context(), &stream, dir, UnpackOptions{})
		if err == nil || err.Error() != "write sub/taken: file exists" {
			t.Errorf("of %d bytes: %v", size, err)
		}
		entries, err := os.ReadDir(dir + "/sub")
		must(t, err)
		if len(entries) != 1 {
			t.Errorf("of %d bytes there is left %v", size, entries)
		}
	}
}

// checkOutside sees that nothing was made or changed beside "inside".
func checkOutside(t *testing.T, parent string) {
	t.Helper()
	entries, err := os.ReadDir(parent)
	must(t, err)
	content, err := os.ReadFile(parent + "/victim")
	must(t, err)
	info, err := os.Stat(parent + "/victim")
	must(t, err)
	if len(entries) != 2 || string(content) != "good" || info.Mode() != 0o600 {
		t.Errorf("outside there are %v, and the victim holds %q, %v", entries, content, info.Mode())
	}
}

// A guest that is asked for one file or directory cannot write to others that
// are beside it.
func TestNotAskedFor(t *testing.T) {
	dir := tar.Header{Typeflag: tar.TypeDir, Name: "asked", Mode: 0o755}
	for name, stream := range map[string][]byte{
		"another":            archive(tar.Header{Typeflag: tar.TypeReg, Name: "victim"}),
		"another after":      archive(tar.Header{Typeflag: tar.TypeReg, Name: "asked"}, tar.Header{Typeflag: tar.TypeReg, Name: "victim"}),
		"another beside":     archive(dir, tar.Header{Typeflag: tar.TypeReg, Name: "victim"}),
		"a longer name":      archive(dir, tar.Header{Typeflag: tar.TypeReg, Name: "askedfor"}),
		"twice":              archive(tar.Header{Typeflag: tar.TypeReg, Name: "asked"}, tar.Header{Typeflag: tar.TypeReg, Name: "asked"}),
		"a file, then a dir": archive(tar.Header{Typeflag: tar.TypeReg, Name: "asked"}, dir),
		"below no directory": archive(tar.Header{Typeflag: tar.TypeReg, Name: "asked/victim"}),
		"a link itself":      archive(tar.Header{Typeflag: tar.TypeSymlink, Name: "asked", Linkname: "."}, tar.Header{Typeflag: tar.TypeReg, Name: "asked/victim"}),
		"a link up":          archive(dir, tar.Header{Typeflag: tar.TypeSymlink, Name: "asked/up", Linkname: ".."}, tar.Header{Typeflag: tar.TypeReg, Name: "asked/up/victim"}),
		"a link replaces it": archive(dir, tar.Header{Typeflag: tar.TypeSymlink, Name: "asked", Linkname: "."}, tar.Header{Typeflag: tar.TypeReg, Name: "asked/victim"}),
		"a hard link":        archive(dir, tar.Header{Typeflag: tar.TypeLink, Name: "asked/stolen", Linkname: "victim"}),
		"the mode of all":    archive(tar.Header{Typeflag: tar.TypeDir, Name: ".", Mode: 0o777}),
	} {
		parent := t.TempDir()
		write(t, parent+"/victim", "good", 0o600)
		_, err := Unpack(t.Context(), bytes.NewReader(stream), parent, UnpackOptions{Name: "asked", Owner: &Owner{os.Geteuid(), os.Getegid()}})
		if err == nil {
			t.Errorf("%s: no error", name)
		}
		content, err := os.ReadFile(parent + "/victim")
		if err != nil || string(content) != "good" {
			t.Errorf("%s: the victim holds %q, %v", name, content, err)
		}
		for file := range describeTree(t, parent) {
			if file != "." && file != "victim" && file != "asked" && file != "asked/up" {
				t.Errorf("%s: there is %s", name, file)
			}
		}
	}
}

func TestSetID(t *testing.T) {
	stream := archive(tar.Header{Typeflag: tar.TypeReg, Name: "su", Mode: 0o4755})
	for _, trusted := range []bool{false, true} {
		dir := t.TempDir()
		_, err := Unpack(t.Context(), bytes.NewReader(stream), dir, UnpackOptions{Owner: &Owner{os.Geteuid(), os.Getegid()}, Trusted: trusted})
		must(t, err)
		info, err := os.Stat(dir + "/su")
		must(t, err)
		if got := info.Mode()&fs.ModeSetuid != 0; got != trusted {
			t.Errorf("trusted %t: mode %v", trusted, info.Mode())
		}
	}
}

// Links that take the place of files and directories, again and again while
// they are packed, lead nowhere.
func TestSwappedForALink(t *testing.T) {
	from, elsewhere := t.TempDir(), t.TempDir()
	write(t, elsewhere+"/victim", "secret", 0o600)
	write(t, from+"/a/victim", "mine", 0o600)
	write(t, from+"/b", "mine", 0o600)
	must(t, os.Symlink(elsewhere, from+"/.a"), os.Symlink(elsewhere+"/victim", from+"/.b"))
	done, swapping := make(chan struct{}), sync.WaitGroup{}
	swapping.Go(func() {
		for {
			select {
			case <-done:
				return
			default:
			}
			for _, name := range []string{"a", "b"} {
				if err := unix.Renameat2(unix.AT_FDCWD, from+"/"+name, unix.AT_FDCWD, from+"/."+name, unix.RENAME_EXCHANGE); err != nil {
					t.Error(err)
					return
				}
			}
		}
	})
	for range 500 {
		var b bytes.Buffer
		// It may fail, for what was a directory is none any more.
		_, _ = Pack(t.Context(), &b, from, PackOptions{Name: "x"})
		if bytes.Contains(b.Bytes(), []byte("secret\x00")) {
			t.Fatal("what a link leads to was packed")
		}
	}
	close(done)
	swapping.Wait()
}

func TestCancel(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Unpack(ctx, bytes.NewReader(archive(tar.Header{Typeflag: tar.TypeReg, Name: "x"})), t.TempDir(), UnpackOptions{}); !errors.Is(err, context.Canceled) {
		t.Errorf("unpack: %v", err)
	}
	if _, err := Pack(ctx, io.Discard, t.TempDir(), PackOptions{Name: "x"}); !errors.Is(err, context.Canceled) {
		t.Errorf("pack: %v", err)
	}
}

func FuzzUnpack(f *testing.F) {
	for name, stream := range hostile {
		if name != "deep" { // whose neighbours take long
			f.Add(stream)
		}
	}
	f.Fuzz(func(t *testing.T, stream []byte) {
		parent := t.TempDir()
		write(t, parent+"/victim", "good", 0o600)
		must(t, os.Mkdir(parent+"/inside", 0o755))
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		// Only what is outside matters.
		_, _ = Unpack(ctx, bytes.NewReader(stream), parent+"/inside", UnpackOptions{Owner: &Owner{os.Geteuid(), os.Getegid()}})
		checkOutside(t, parent)
		_, _ = Unpack(ctx, bytes.NewReader(stream), parent+"/inside", UnpackOptions{
			Owner: &Owner{os.Geteuid(), os.Getegid()}, Resume: true, Parts: map[string]Part{"file": {Offset: 4}}, Removals: true,
		})
		checkOutside(t, parent)
	})
}
