package e2e

import (
	"archive/tar"
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// What a sandbox has written, replaced and removed becomes an image, whether it
// runs, was killed or is stopped. What vmsan wrote there does not.
func TestCommit(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	dir := t.TempDir()
	makeBusybox(t, dir)
	for name, text := range map[string]string{"opt/old": "old", "srv/old": "old", "both": "image", "etc/hostname": "the image's"} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	archive := filepath.Join(t.TempDir(), "rootfs.tar")
	command(t, "tar", "-c", "-C", dir, "-f", archive, ".")
	h.must("image", "import", saveImage(t, archive, map[string]any{"Env": []string{"PATH=/bin", "A=image"}, "Cmd": []string{"/bin/sh"}}), "box")
	h.must("create", "--network", "none", "--memory", "128", "--image", "box", "--name", "source", "-e", "SECRET=mine")
	h.must("exec", "source", "--", "sh", "-c", `busybox rm -r /opt/old /srv /both /bin/ls && busybox mkdir -p /srv/new && echo 2 >/srv/new/file &&
		echo sandbox >/both && busybox ln /both /too && busybox chown 70000:7 /both && echo mine >/run/secret && echo 1.2.3.4 me >>/etc/hosts &&
		busybox mknod /fifo p && busybox dd if=/dev/urandom of=/big bs=1M count=20 2>/dev/null`)

	change := []string{"--change", "ENV B=2", "--change", `CMD ["sh", "-c", "cat /both /too /srv/new/file; busybox stat -c %u:%g /too; echo $A $B $SECRET; echo /opt/* /srv/* /bin/*"]`}
	commit := func(name string) string {
		return h.must(append([]string{"image", "commit", "source", name}, change...)...)
	}
	running := commit("running")
	h.must("pause", "source")
	paused := commit("again")
	h.must("pause", "--reclaim", "source")
	reclaimed := commit("again")
	h.must("resume", "source")
	if again := commit("again"); running != again || paused != again || reclaimed != again {
		t.Errorf("the same files make %s, %s, %s and %s", running, paused, reclaimed, again)
	}
	want := "sandbox\nsandbox\n2\n70000:7\nimage 2\n/opt/* /srv/new /bin/busybox /bin/cat /bin/sh"
	if got := h.must("run", "--network", "none", "--memory", "128", "running"); got != want {
		t.Errorf("the image's command prints %q, want %q", got, want)
	}
	files := h.exported(t, "running")
	for _, name := range []string{"etc/hosts", "etc/machine-id", "run/secret", "dev/null"} {
		if file, ok := files[name]; ok {
			t.Errorf("the image has %s: %s", name, file.start)
		}
	}
	if name, big := files["etc/hostname"].start, files["big"]; name != "the image's" || big.size != 20<<20 {
		t.Errorf("the image has the host name %q, and %s in big", name, big)
	}

	// What is in the journal alone counts.
	h.must("exec", "source", "--", "sh", "-c", "echo last >/last && busybox sync")
	if err := h.process(h.inspect("source").PIDs.VMM).Kill(); err != nil {
		t.Fatal(err)
	}
	h.awaitEnd(t, "source")
	if one, two := commit("killed"), commit("again"); one != two {
		t.Errorf("the disk of a killed sandbox makes %s and %s", one, two)
	}
	if got := h.exported(t, "killed")["last"].start; got != "last\n" {
		t.Errorf("what was written last is %q", got)
	}
	h.must("start", "source")
	h.must("exec", "source", "--", "sh", "-c", "echo later >/last")
	h.must("stop", "source")
	commit("stopped")
	if got := h.exported(t, "stopped")["last"].start; got != "later\n" {
		t.Errorf("what was written last is %q", got)
	}
	for _, args := range [][]string{
		{"source", "Bad Name"}, {"nobody", "name"}, {"source", "name", "--change", "RUN rm"}, {"source", "name", "--message", strings.Repeat("x", 1001)},
	} {
		if _, err := h.vmsan(append([]string{"image", "commit"}, args...)...); err == nil {
			t.Errorf("%q succeeds", args)
		}
	}
	if _, err := h.vmsan("image", "inspect", "name"); err == nil {
		t.Error("a commit that failed made an image")
	}
}

// exportedFile is a file of an image.
type exportedFile struct {
	what  string // type, mode, owner, time and attributes
	size  int64
	sum   [sha256.Size]byte
	start string // what it holds at its beginning
}

func (f exportedFile) String() string { return fmt.Sprintf("%s, %d bytes %.4x", f.what, f.size, f.sum) }

// exported are the files of an image.
func (h *host) exported(t *testing.T, image string) map[string]exportedFile {
	t.Helper()
	path := filepath.Join(t.TempDir(), "rootfs.tar")
	h.exportRootfs(t, image, path)
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	files := map[string]exportedFile{}
	for in := tar.NewReader(f); ; {
		header, err := in.Next()
		if err == io.EOF {
			return files
		}
		if err != nil {
			t.Fatal(err)
		}
		sum, start := sha256.New(), make([]byte, 100)
		n, err := io.ReadFull(in, start)
		if err != nil && err != io.EOF && err != io.ErrUnexpectedEOF {
			t.Fatal(err)
		}
		sum.Write(start[:n])
		if _, err := io.Copy(sum, in); err != nil {
			t.Fatal(err)
		}
		files[header.Name] = exportedFile{
			what: fmt.Sprintf("%c %o %d:%d at %d -> %s %d:%d %q", header.Typeflag, header.Mode, header.Uid, header.Gid, header.ModTime.UnixNano(),
				header.Linkname, header.Devmajor, header.Devminor, header.PAXRecords),
			size: header.Size, sum: [sha256.Size]byte(sum.Sum(nil)), start: string(start[:n]),
		}
	}
}
