package overlay

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/vmsan/vmsan/internal/ext4"
)

// disk makes a file system below top, a word for each file: its kind (d, f, w
// for a whiteout, l and h for links), path, =TARGET of a link, and @NAME=VALUE
// of an attribute. A file holds its word.
func disk(t testing.TB, top string, words ...string) []byte {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "disk"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	w := ext4.NewWriter(f, 1<<30)
	all := map[string]*ext4.Inode{".": w.Root()}
	if top != "" {
		all[top] = w.New(ext4.Attr{Mode: ext4.TypeDir | 0o755})
		if err := w.Link(w.Root(), top, all[top]); err != nil {
			t.Fatal(err)
		}
	}
	for _, word := range words {
		rest, attribute, _ := strings.Cut(word[2:], "@")
		name, target, _ := strings.Cut(rest, "=")
		a := ext4.Attr{Mode: ext4.TypeRegular | 0o644, Target: target}
		a.Mode = map[byte]uint16{'d': ext4.TypeDir | 0o755, 'f': ext4.TypeRegular | 0o644, 'l': ext4.TypeSymlink | 0o777, 'w': ext4.TypeChar}[word[0]]
		if key, value, ok := strings.Cut(attribute, "="); ok {
			a.Xattrs = map[string]string{key: value}
		}
		n := w.New(a)
		if word[0] == 'f' {
			err = w.Fill(n, strings.NewReader(word), int64(len(word)))
		}
		if word[0] == 'h' {
			n = all[path.Join(top, target)]
		}
		all[path.Join(top, name)] = n
		if err = errors.Join(err, w.Link(all[path.Dir(path.Join(top, name))], path.Base(name), n)); err != nil {
			t.Fatal(word, err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(f.Name())
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func reader(t testing.TB, data []byte) *ext4.Reader {
	t.Helper()
	r, err := ext4.NewReader(bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// see lists what a guest sees as words, files by what they hold.
func see(image, disk *ext4.Reader) (list []string, err error) {
	first := map[ext4.ID]string{}
	err = Walk(image, disk, func(name string, n *ext4.File) error {
		if name == "" {
			return nil
		}
		word := ""
		switch n.Mode & ext4.TypeMask {
		case ext4.TypeDir:
			word = "d " + name
		case ext4.TypeSymlink:
			word = "l " + name + "=" + n.Target
		case ext4.TypeRegular:
			body, err := io.ReadAll(n.Open())
			if err != nil {
				return err
			}
			word = fmt.Sprintf("%s: %s", name, body)
			if first[n.ID()] != "" {
				word = "h " + name + "=" + first[n.ID()]
			}
			first[n.ID()] = name
		default:
			word = fmt.Sprintf("%o %s", n.Mode, name)
		}
		list = append(list, word)
		return nil
	})
	return list, err
}

func TestWalk(t *testing.T) {
	for _, c := range []struct {
		name         string
		image, upper []string
		want         []string
	}{
		{"nothing is written", []string{"f a", "d d", "f d/b"}, nil, []string{"a: f a", "d d", "d/b: f d/b"}},
		{"one is added", []string{"f b"}, []string{"f a", "f c"}, []string{"a: f a", "b: f b", "c: f c"}},
		{"one replaces another", []string{"f a", "d d", "f d/b"}, []string{"f a@user.x=y", "d d"}, []string{"a: f a@user.x=y", "d d", "d/b: f d/b"}},
		{"removed", []string{"f a", "d d", "f d/b", "f d/c"}, []string{"w a", "d d", "w d/b"}, []string{"d d", "d/c: f d/c"}},
		{"removed and never there", nil, []string{"w a"}, nil},
		{"directories are merged below", []string{"d a", "d a/b", "f a/b/1"}, []string{"d a", "d a/b", "f a/b/2"},
			[]string{"d a", "d a/b", "a/b/1: f a/b/1", "a/b/2: f a/b/2"}},
		{"opaque", []string{"d a", "f a/1"}, []string{"d a@trusted.overlay.opaque=y", "f a/2"}, []string{"d a", "a/2: f a/2"}},
		{"opaque above", []string{"d a", "d a/b", "f a/b/1"}, []string{"d a@trusted.overlay.opaque=y", "d a/b", "f a/b/2"},
			[]string{"d a", "d a/b", "a/b/2: f a/b/2"}},
		{"a file for a directory", []string{"d a", "f a/1"}, []string{"f a"}, []string{"a: f a"}},
		{"a directory for a file", []string{"f a"}, []string{"d a", "f a/1"}, []string{"d a", "a/1: f a/1"}},
		{"a link for a directory", []string{"d a", "f a/1"}, []string{"l a=/b"}, []string{"l a=/b"}},
		{"names of one file", []string{"f a", "h b=a"}, []string{"f c", "h d=c"}, []string{"a: f a", "h b=a", "c: f c", "h d=c"}},
		{"one of several names is written to", []string{"f a", "h b=a", "h c=a"}, []string{"f b"}, []string{"a: f a", "b: f b", "h c=a"}},
		{"what is called like a layer's whiteout", []string{"f a"}, []string{"f .wh.a"}, []string{".wh.a: f .wh.a", "a: f a"}},
		{"a whiteout in the image", []string{"w a", "d d", "w d/b"}, nil, []string{"d d"}},
		{"what overlayfs notes for itself", []string{"d a", "f a/1"}, []string{"d a@trusted.overlay.impure=y", "f a/2@trusted.overlay.origin=x"},
			[]string{"d a", "a/1: f a/1", "a/2: f a/2@trusted.overlay.origin=x"}},
		{"what the agent writes", nil, []string{"d dev", "f dev/x", "d etc", "f etc/hostname", "f etc/hosts", "f etc/machine-id", "f etc/resolv.conf", "d proc",
			"d run", "f run/y", "d sys"}, []string{"d etc"}},
		{"what the image has instead", []string{"d etc", "f etc/hosts@user.x=image", "l etc/resolv.conf=/run/r", "d run", "f run/z"},
			[]string{"d etc", "f etc/hosts", "f etc/resolv.conf", "f etc/other", "d run", "f run/y"},
			[]string{"d etc", "etc/hosts: f etc/hosts@user.x=image", "etc/other: f etc/other", "l etc/resolv.conf=/run/r", "d run", "run/z: f run/z"}},
		{"the same behind a link", []string{"l etc=/usr/../usr/etc", "d usr", "d usr/etc", "f usr/etc/passwd"}, []string{"d usr", "d usr/etc", "f usr/etc/hosts"},
			[]string{"l etc=/usr/../usr/etc", "d usr", "d usr/etc", "usr/etc/passwd: f usr/etc/passwd"}},
		{"a link to itself", []string{"l etc=etc"}, []string{"f hosts"}, []string{"l etc=etc", "hosts: f hosts"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := see(reader(t, disk(t, "", c.image...)), reader(t, disk(t, upperDir, c.upper...)))
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestWalkOfNewDisk(t *testing.T) {
	got, err := see(reader(t, disk(t, "", "f a")), reader(t, disk(t, "", "d lost+found")))
	if diff := cmp.Diff([]string{"a: f a"}, got); err != nil || diff != "" {
		t.Errorf("error %v (-want +got):\n%s", err, diff)
	}
}

func TestWalkRefuses(t *testing.T) {
	for _, word := range []string{
		"d a@trusted.overlay.redirect=/etc", "f a@trusted.overlay.metacopy=", "f a@trusted.overlay.whiteout=y", "d a@trusted.overlay.opaque=x",
	} {
		if got, err := see(reader(t, disk(t, "", "d a")), reader(t, disk(t, upperDir, word))); !errors.Is(err, ext4.ErrDamaged) {
			t.Errorf("%s: got %v, error %v", word, got, err)
		}
	}
	if _, err := see(reader(t, disk(t, "")), reader(t, disk(t, "", "f upper"))); !errors.Is(err, ext4.ErrDamaged) {
		t.Errorf("no directory: got error %v", err)
	}
}

func FuzzWalk(f *testing.F) {
	image := reader(f, disk(f, "", "d a", "f a/1", "l etc=a", "d b", "d b/c", "f b/c/2"))
	data := disk(f, upperDir, "d a", "w a/1", "f a/3", "d b@trusted.overlay.opaque=y", "d b/c", "f b/c/4")
	for i := range 60 {
		f.Add(data, len(data)-len(data)*i/61-1, byte(0xff))
	}
	f.Fuzz(func(t *testing.T, data []byte, at int, c byte) {
		if at >= 0 && at < len(data) {
			data = bytes.Clone(data)
			data[at] ^= c
		}
		disk, err := ext4.NewReader(bytes.NewReader(data))
		if err != nil {
			return
		}
		names := 0
		Walk(image, disk, func(_ string, n *ext4.File) error {
			if names++; names > 1000 {
				return io.EOF
			}
			_, err := io.CopyN(io.Discard, n.Open(), 1<<20)
			return err
		})
	})
}
