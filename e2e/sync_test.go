package e2e

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/vmsan/vmsan/api"
)

// compared says what is in a directory: names, kinds, modes, and what files hold.
const compared = `cd %s && find . -mindepth 1 -printf '%%p %%y %%m %%l\n' | sort && find . -type f -exec cksum {} + | sort`

// TestSyncWatch has a tree change in all the ways that editors, builds and
// checkouts change one, and waits for a sandbox to have what it has.
func TestSyncWatch(t *testing.T) {
	h := newHost(t)
	h.must("create", "--name", "box", "--network", "none")
	tree := t.TempDir()
	here := func(script string) string {
		t.Helper()
		cmd := exec.Command("sh", "-ec", script)
		cmd.Dir = tree
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%s: %v: %s", script, err, out)
		}
		return string(out)
	}
	here("mkdir -p a/b; echo 1 >a/b/one; echo 2 >two; echo x.log >.gitignore")
	cmd := exec.Command(h.binary, "sync", "--json", "--watch", "--delete", "box", tree, "/srv/tree")
	cmd.Env = append(os.Environ(), "VMSAN_DIR="+h.layout.Dir)
	cmd.Stderr = os.Stderr
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Process.Kill()
	lines := bufio.NewScanner(stdout)
	var first api.Synced
	if !lines.Scan() || json.Unmarshal(lines.Bytes(), &first) != nil || first.Files != 3 {
		t.Fatalf("the first round says %q", lines.Text())
	}
	rounds := make(chan int)
	go func() {
		n := 0
		for lines.Scan() {
			n++
		}
		rounds <- n
	}()
	for _, change := range []string{
		"echo 3 >a/b/three",
		"echo changed >>two",
		"mkdir -p new/deep/deeper && echo 4 >new/deep/deeper/four",                     // written before it could be watched
		"echo saved >.two.swp && mv two two~ && mv .two.swp two && rm two~",            // as editors save
		"mv new moved && echo 5 >moved/deep/deeper/five",                               // what is below goes on being watched
		"echo again >moved/deep/deeper/five",                                           //
		"rm -r a && echo now-a-file >a",                                                //
		"chmod 700 moved; ln -sf two link",                                             //
		"for i in $(seq 300); do mkdir -p d$((i%7))/$i; echo $i >d$((i%7))/$i/f; done", // a checkout
		"rm -r d*; mkdir d1; echo 6 >d1/six",
	} {
		here(change)
		want := here(fmt.Sprintf(compared, "."))
		for deadline := time.Now().Add(patience); ; time.Sleep(100 * time.Millisecond) {
			got := h.sh("box", fmt.Sprintf(compared, "/srv/tree"))
			if got+"\n" == want {
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("after %s there is\n%s\nand not\n%s", change, got, want)
			}
		}
	}
	here("echo ignored >x.log")
	cmd.Process.Signal(syscall.SIGINT)
	n := <-rounds
	if err := cmd.Wait(); err != nil {
		t.Errorf("interrupted: %v", err)
	}
	if n == 0 {
		t.Error("it said nothing of any change")
	}
	h.sh("box", "test ! -e /srv/tree/x.log")
}

// TestSyncLarge: a tree of 50,000 files is compared in one go, and only what
// has changed is sent.
func TestSyncLarge(t *testing.T) {
	h := newHost(t)
	h.must("create", "--name", "box", "--network", "none", "--memory", "512m")
	tree := t.TempDir()
	for i := range 50_000 {
		name := filepath.Join(tree, fmt.Sprint("directory-", i/500), fmt.Sprint("file-", i))
		if i%500 == 0 {
			if err := os.Mkdir(filepath.Dir(name), 0o755); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.WriteFile(name, []byte(name), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	sync := func() (s api.Synced) {
		t.Helper()
		if err := json.Unmarshal([]byte(h.must("sync", "--json", "box", tree, "/srv/tree", "--delete")), &s); err != nil {
			t.Fatal(err)
		}
		return s
	}
	if s := sync(); s.Files != 50_000 || s.Directories != 100 {
		t.Errorf("at first: %+v", s)
	}
	if err := os.WriteFile(filepath.Join(tree, "directory-7/file-3500"), []byte("changed"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(filepath.Join(tree, "directory-99")); err != nil {
		t.Fatal(err)
	}
	if s := sync(); s.Files != 1 || s.Removed != 501 {
		t.Errorf("then: %+v", s)
	}
	if got := h.sh("box", "cat /srv/tree/directory-7/file-3500; find /srv/tree -type f | wc -l"); got != "changed49500" {
		t.Errorf("in the guest: %s", got)
	}
}
