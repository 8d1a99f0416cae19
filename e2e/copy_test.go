package e2e

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vmsan/vmsan/api"
	"golang.org/x/sys/unix"
)

// TestCopy is case N15 of the reference, and L2: trees and files there and
// back, as they were.
func TestCopy(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.must("create", "--name", "box", "--network", "none")
	dir := t.TempDir()
	tree := filepath.Join(dir, "tree")
	content := make([]byte, 5<<20+1)
	rand.Read(content)
	for name, mode := range map[string]os.FileMode{"run.sh": 0o755, "sub/secret": 0o600, "sub/deep/größe": 0o444} {
		path := filepath.Join(tree, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o750); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, content, mode); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("../run.sh", filepath.Join(tree, "sub/link")); err != nil {
		t.Fatal(err)
	}
	// same compares what tar sees of two trees, owners and times included.
	same := func(a, b string) {
		t.Helper()
		list := func(path string) string {
			out, err := exec.Command("tar", "-C", path, "--sort=name", "--full-time", "-cf", "-", ".").Output()
			if err != nil {
				t.Fatal(err)
			}
			return string(out)
		}
		if list(a) != list(b) {
			t.Errorf("%s and %s differ", a, b)
		}
	}
	h.must("cp", tree, "box:/srv")
	if got := h.sh("box", "cd /srv/tree && stat -c '%a %U %n' run.sh sub sub/secret && readlink sub/link"); got != "755 root run.sh\n750 root sub\n600 root sub/secret\n../run.sh" {
		t.Errorf("in the guest: %s", got)
	}
	h.must("cp", "box:/srv/tree", filepath.Join(dir, "back"))
	same(tree, filepath.Join(dir, "back"))
	// Under another name, in a directory, and only what is in it.
	h.must("cp", tree+"/.", "box:/srv/contents")
	h.must("cp", "box:/srv/contents/.", dir+"/back")
	same(tree+"/sub", dir+"/back/sub")
	h.must("upload", "box", tree, tree+"/run.sh", "-d", "/opt")
	h.must("download", "box", "/opt/run.sh", "-d", dir+"/downloaded")
	if got, err := os.ReadFile(dir + "/downloaded"); err != nil || !bytes.Equal(got, content) {
		t.Errorf("downloaded %d bytes, %v", len(got), err)
	}
	h.must("upload", "box", tree+"/run.sh")
	h.sh("box", "test -x ~/run.sh")

	// Owners.
	h.must("cp", "-u", "nobody", tree+"/run.sh", "box:/tmp/")
	h.sh("box", "test $(stat -c %U /tmp/run.sh) = nobody; chmod 4755 /tmp/run.sh")
	h.must("cp", "box:/tmp/run.sh", dir+"/mine")
	h.must("cp", "-a", "box:/tmp/run.sh", dir+"/kept")
	for name, want := range map[string]uint32{"mine": 0, "kept": 65534} {
		info, err := os.Stat(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		if uid := info.Sys().(*syscall.Stat_t).Uid; uid != want || info.Mode()&os.ModeSetuid != 0 != (name == "kept") {
			t.Errorf("%s belongs to %d, mode %v", name, uid, info.Mode())
		}
	}

	// A program that lends its owner's rights does not come to lend root's.
	setuid := filepath.Join(dir, "kept") // by somebody else, and set-id
	h.must("cp", setuid, "box:/tmp/lent")
	h.must("cp", "-a", setuid, "box:/tmp/same")
	if got := h.sh("box", "stat -c '%a %U' /tmp/lent /tmp/same"); got != "755 root\n4755 nobody" {
		t.Errorf("set-id programs arrive as %s", got)
	}
	// A link that is named as the destination stays, and leads to the copy.
	h.sh("box", "ln -s target /tmp/link && echo old >/tmp/target")
	h.must("cp", tree+"/run.sh", "box:/tmp/link")
	h.sh("box", "test -L /tmp/link && test -x /tmp/target")
	if err := os.Symlink("mine", filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	h.must("cp", "box:/etc/hostname", filepath.Join(dir, "link"))
	if got, err := os.ReadFile(filepath.Join(dir, "mine")); err != nil || string(got) != "box\n" {
		t.Errorf("through a link: %q, %v", got, err)
	}

	// From one sandbox to another, and as a stream.
	h.must("fork", "box", "--name", "other")
	h.sh("other-1", "rm -r /srv/tree")
	h.must("cp", "box:/srv/tree", "other-1:/srv")
	h.sh("other-1", "test -x /srv/tree/run.sh")
	stream, err := h.vmsan("cp", "box:/srv/tree", "-")
	if err != nil {
		t.Fatal(err)
	}
	header, err := tar.NewReader(strings.NewReader(stream)).Next()
	if err != nil || header.Name != "tree/" {
		t.Errorf("the stream begins with %+v, %v", header, err)
	}
	copied := h.command(context.Background(), "cp", "-", "box:/tmp")
	// GNU tar fills its streams up.
	copied.Stdin = strings.NewReader(stream + strings.Repeat("\x00", 10<<10))
	if out, err := copied.CombinedOutput(); err != nil {
		t.Errorf("a stream: %v: %s", err, out)
	}
	h.sh("box", "test -x /tmp/tree/run.sh; mkdir /tmp/odd; mkfifo /tmp/odd/pipe; dd if=/dev/urandom of=/tmp/odd/file bs=1M count=4 2>/dev/null")
	if out := h.must("cp", "--json", "box:/tmp/odd", dir); !strings.Contains(out, `"skipped": 1`) || !strings.Contains(out, `"files": 1`) {
		t.Errorf("with a pipe: %s", out)
	}

	h.refuseCopies(dir)
}

// refuseCopies shows what cannot be copied, and that nothing is left of it.
func (h *host) refuseCopies(dir string) {
	h.t.Helper()
	h.sh("box", "dd if=/dev/urandom of=/root/large bs=1M count=4 2>/dev/null; mkdir -p /small; mount -t tmpfs -o size=1m none /small")
	small := filepath.Join(dir, "small")
	if err := os.Mkdir(small, 0o755); err != nil {
		h.t.Fatal(err)
	}
	if err := unix.Mount("small", small, "tmpfs", 0, "size=1m"); err != nil {
		h.t.Fatal(err)
	}
	defer unix.Unmount(small, 0)
	for _, test := range []struct {
		code     api.Code
		from, to string
	}{
		{api.ErrFileNotFound, "box:/none", dir},
		{api.ErrFileNotFound, dir + "/none", "box:/tmp"},
		{api.ErrFileNotFound, dir + "/mine", "box:/none/"},
		{api.ErrFileNotFound, dir + "/mine", "box:/none/none"},
		{api.ErrFileNotFound, "box:/etc/passwd", dir + "/none/none"},
		{api.ErrFile, dir + "/tree", "box:/etc/passwd"},
		{api.ErrFile, "box:/etc", dir + "/mine"},
		{api.ErrFile, "box:/dev/null", dir + "/null"},
		{api.ErrFile, "-", "box:/etc/passwd"},
		{api.ErrUsage, dir + "/mine", dir + "/yours"},
		{api.ErrVMNotFound, "none:/etc/passwd", dir},
		{api.ErrValidationPath, "", "box:/tmp"},
		{api.ErrGuest, "box:/root/large", "box:/small/"},
		{api.ErrFile, "box:/srv", "box:/srv/tree/new"},
		{api.ErrFile, "box:/", "box:/tmp"},
		{api.ErrDiskFull, "box:/root/large", small},
		{api.ErrValidationFlags, "box:/etc/passwd", "-"},
	} {
		if failure := h.refused("cp", test.from, test.to); failure.Code != test.code {
			h.t.Errorf("cp %s %s: %+v, want %s", test.from, test.to, failure, test.code)
		}
	}
	if got := h.sh("box", "ls -A /small"); got != "" {
		h.t.Errorf("of a copy that did not fit there is %s", got)
	}
	if left, err := os.ReadDir(small); err != nil || len(left) > 0 {
		h.t.Errorf("left on a full disk: %v, %v", left, err)
	}
	if failure := h.refused("upload", "box", dir+"/mine", dir+"/kept", "-d", "/none"); failure.Code != api.ErrFileNotFound {
		h.t.Errorf("several files to one name: %+v", failure)
	}
}

// mostMemory follows a process to its end, and returns the most memory that it
// was seen to have used, in KiB. What wait4(2) says counts in the process that
// started it.
func mostMemory(pid int) (most int) {
	for {
		status, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/status")
		if err != nil {
			return most
		}
		_, rest, found := strings.Cut(string(status), "VmHWM:")
		if !found && most > 0 {
			return most
		}
		var now int
		fmt.Sscan(rest, &now)
		most = max(most, now)
		time.Sleep(10 * time.Millisecond)
	}
}

// TestCopyLarge: what a copy takes of the host's memory does not depend on
// the size of the file.
func TestCopyLarge(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	size := int64(64 << 20)
	if os.Getenv(loadVar) != "" {
		size = 2 << 30
	}
	h.must("create", "--name", "box", "--network", "none")
	large := filepath.Join(t.TempDir(), "large")
	if err := os.WriteFile(large, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(large, size); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"cp", large, "box:/root/large"}, {"cp", "box:/root/large", large + "-back"}} {
		cmd := h.command(context.Background(), args...)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		used := make(chan int)
		go func() { used <- mostMemory(cmd.Process.Pid) }()
		if err := cmd.Wait(); err != nil {
			t.Fatalf("%q: %v", args, err)
		}
		if used := <-used; used == 0 || used > 90<<10 {
			t.Errorf("%q took %d KiB of memory", args, used)
		}
	}
	info, err := os.Stat(large + "-back")
	if err != nil || info.Size() != size {
		t.Fatalf("came back as %v, %v", info, err)
	}
	if blocks := info.Sys().(*syscall.Stat_t).Blocks; blocks > 1000 {
		t.Errorf("a file of zeros has %d blocks", blocks)
	}
}
