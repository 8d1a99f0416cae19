package e2e

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/vmsan/vmsan/api"
	"github.com/vmsan/vmsan/internal/filetree"
)

// breakOff begins a copy, and kills it when much of its large file has arrived,
// of which size tells.
func (h *host) breakOff(size func() int64, how func(*exec.Cmd), args ...string) {
	h.t.Helper()
	cmd := h.command(context.Background(), args...)
	if err := cmd.Start(); err != nil {
		h.t.Fatal(err)
	}
	// It stands still while we look: how quick it is does not matter.
	for deadline := time.Now().Add(patience); ; {
		time.Sleep(5 * time.Millisecond)
		cmd.Process.Signal(syscall.SIGSTOP)
		if size() >= 4<<20 {
			break
		}
		cmd.Process.Signal(syscall.SIGCONT)
		if time.Now().After(deadline) {
			cmd.Process.Kill()
			h.t.Fatalf("%q has brought nothing", args)
		}
	}
	how(cmd)
	if err := cmd.Wait(); err == nil {
		h.t.Fatalf("%q ended before it was broken off", args)
	}
}

func sum(content []byte) string { return fmt.Sprintf("%x", sha256.Sum256(content)) }

func kill(cmd *exec.Cmd) { cmd.Process.Kill() }

// resume is a copy that has to send less than all.
func (h *host) resume(all int64, args ...string) (copied api.Copied) {
	h.t.Helper()
	out := h.must(append([]string{"cp", "--resume", "--json"}, args...)...)
	if err := json.Unmarshal([]byte(out), &copied); err != nil {
		h.t.Fatal(err)
	}
	if copied.Bytes >= all {
		h.t.Errorf("%q sent all of it again: %+v", args, copied)
	}
	return copied
}

// TestResume has copies break off in the middle of a large file, in both
// directions, and go on.
func TestResume(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.must("create", "--name", "box", "--network", "none")
	const size = 96 << 20
	tree := filepath.Join(t.TempDir(), "tree")
	content := make([]byte, size)
	rand.Read(content)
	for name, content := range map[string][]byte{"a-small": []byte("small"), "large": content, "z-last": []byte("last")} {
		if err := os.MkdirAll(tree, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(tree, name), content, 0o640); err != nil {
			t.Fatal(err)
		}
	}
	partial := filetree.PartialName("large")
	there := func() int64 {
		n, err := strconv.ParseInt(h.sh("box", "stat -c %s /srv/tree/"+partial+" 2>/dev/null || echo 0"), 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	whole := func() {
		t.Helper()
		if got := h.sh("box", "cd /srv/tree && sha256sum large | cut -d' ' -f1; ls -A | tr '\\n' ' '; stat -c %a large"); got != sum(content)+"\na-small large z-last 640" {
			t.Errorf("in the guest: %s", got)
		}
	}

	// To the sandbox: the client is killed.
	h.breakOff(there, kill, "cp", "--resume", tree, "box:/srv")
	h.sh("box", "test ! -e /srv/tree/large && test -e /srv/tree/a-small")
	if copied := h.resume(size, tree, "box:/srv"); copied.Kept != 1 || copied.Files != 2 {
		t.Errorf("resumed: %+v", copied)
	}
	whole()
	if copied := h.resume(size, tree, "box:/srv"); copied.Kept != 3 || copied.Bytes != 0 {
		t.Errorf("once more: %+v", copied)
	}
	// A partial that is not the file's beginning is not gone on with, and a
	// link or a pipe in its place leads nowhere.
	h.sh("box", "cd /srv/tree && rm large && head -c 5000000 /dev/zero >"+partial)
	h.must("cp", "--resume", tree, "box:/srv")
	whole()
	h.sh("box", "cd /srv/tree && rm large && echo precious >/root/precious && ln -s /root/precious "+partial)
	h.must("cp", "--resume", tree, "box:/srv")
	whole()
	h.sh("box", "cd /srv/tree && rm large && mkfifo "+partial)
	h.must("cp", "--resume", tree, "box:/srv")
	whole()
	if got := h.sh("box", "cat /root/precious"); got != "precious" {
		t.Errorf("behind a link there is %s", got)
	}

	h.resumeDownloads(content, partial)
}

func (h *host) resumeDownloads(content []byte, partial string) {
	h.t.Helper()
	t, dir := h.t, h.t.TempDir()
	here := func() int64 {
		info, err := os.Stat(filepath.Join(dir, "tree", partial))
		if err != nil {
			return 0
		}
		return info.Size()
	}
	whole := func(names ...string) {
		t.Helper()
		got, err := os.ReadFile(filepath.Join(dir, "tree/large"))
		if err != nil || !bytes.Equal(got, content) {
			t.Errorf("on the host there are %d bytes, %v", len(got), err)
		}
		entries, err := os.ReadDir(filepath.Join(dir, "tree"))
		if err != nil || len(entries) != 3+len(names) {
			t.Errorf("on the host there is %v, %v", entries, err)
		}
	}
	// The client is killed.
	h.breakOff(here, kill, "cp", "--resume", "box:/srv/tree", dir)
	h.resume(int64(len(content)), "box:/srv/tree", dir)
	whole()
	// The sandbox is stopped.
	if err := os.RemoveAll(filepath.Join(dir, "tree")); err != nil {
		t.Fatal(err)
	}
	h.breakOff(here, func(cmd *exec.Cmd) {
		h.must("stop", "box")
		cmd.Process.Signal(syscall.SIGCONT)
	}, "cp", "--resume", "box:/srv/tree", dir)
	if here() < 1<<20 {
		t.Errorf("of a copy whose sandbox was stopped %d bytes are kept", here())
	}
	h.must("start", "box")
	h.resume(int64(len(content)), "box:/srv/tree", dir)
	whole()
	// What stands in a partial's place is not written to, whatever it holds.
	precious := filepath.Join(dir, "precious")
	if err := os.WriteFile(precious, content[:8<<20], 0o600); err != nil {
		t.Fatal(err)
	}
	for _, plant := range []func(string, string) error{os.Link, os.Symlink} {
		path := filepath.Join(dir, "tree", partial)
		if err := os.Remove(filepath.Join(dir, "tree/large")); err != nil {
			t.Fatal(err)
		}
		if err := plant(precious, path); err != nil {
			t.Fatal(err)
		}
		h.must("cp", "--resume", "box:/srv/tree", dir)
		whole()
		if got, err := os.ReadFile(precious); err != nil || !bytes.Equal(got, content[:8<<20]) {
			t.Fatalf("a file that a partial is a link to has %d bytes, %v", len(got), err)
		}
	}
	// A guest can have nothing of the host's taken for a partial file.
	h.sh("box", "cd /srv/tree && touch "+partial)
	h.must("cp", "box:/srv/tree", dir)
	whole()
	if failure := h.refused("cp", "--resume", "-", "box:/srv"); failure.Code != api.ErrValidationFlags {
		t.Errorf("a stream: %+v", failure)
	}
	h.must("upload", "--resume", "box", filepath.Join(dir, "tree"), "-d", "/srv")
	h.must("download", "--resume", "box", "/srv/tree", "-d", dir)
	whole()
}
