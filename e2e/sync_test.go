package e2e

import (
	"bufio"
	"context"
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
	t.Parallel()
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
	cmd := h.command(context.Background(), "sync", "--json", "--watch", "--delete", "box", tree, "/srv/tree")
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

// TestSyncLarge: a tree of many files is compared in one go, and only what has
// changed is sent. Under emulation to make the files takes the longest, so there
// are 50,000 with the tests of load alone.
func TestSyncLarge(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.must("create", "--name", "box", "--network", "none")
	directories := 10
	if os.Getenv(loadVar) != "" {
		directories = 100
	}
	made := fmt.Sprintf("umask 022; i=0; while [ $i -lt %d ]; do mkdir -p d$i; j=0; while [ $j -lt 500 ]; do echo $i $j >d$i/f$j; j=$((j+1)); done; i=$((i+1)); done", directories)
	tree := t.TempDir()
	cmd := exec.Command("sh", "-c", made)
	cmd.Dir = tree
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("make files: %v: %s", err, out)
	}
	h.sh("box", "mkdir /srv/tree; cd /srv/tree; "+made)
	sync := func() (s api.Synced) {
		t.Helper()
		if err := json.Unmarshal([]byte(h.must("sync", "--json", "box", tree, "/srv/tree", "--delete", "--checksum")), &s); err != nil {
			t.Fatal(err)
		}
		return s
	}
	if s := sync(); s.Files != 0 || s.Removed != 0 {
		t.Errorf("of the same files: %+v", s)
	}
	if err := os.WriteFile(filepath.Join(tree, "d7/f35"), []byte("changed"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(filepath.Join(tree, "d9")); err != nil {
		t.Fatal(err)
	}
	if s := sync(); s.Files != 1 || s.Removed != 501 {
		t.Errorf("of one that has changed, and a directory that has gone: %+v", s)
	}
	if got, want := h.sh("box", "cat /srv/tree/d7/f35; find /srv/tree -type f | wc -l"), fmt.Sprint("changed", (directories-1)*500); got != want {
		t.Errorf("in the guest there is %s, not %s", got, want)
	}
}
