package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/vmsan/vmsan/api"
	"github.com/vmsan/vmsan/internal/testenv"
)

// user is somebody without any right.
const user = 1_612_345_678

// TestWithoutRoot runs a sandbox as a user who owns nothing but the state
// directory.
func TestWithoutRoot(t *testing.T) {
	t.Parallel()
	testenv.RequireRoot(t)
	from := testenv.RequireVM(t)
	dir := userDir(t)
	// Copies, not links: whose a file is is one for all its links.
	sh(t, "cp -r --sparse=always "+from.Dir+" "+dir+"/state && mkdir "+dir+"/run && chown -R "+
		"1612345678:1612345678 "+dir+"/state "+dir+"/run && cp "+binary(t)+" "+dir)

	// Its sockets are in /tmp: all else has too long a path.
	t.Cleanup(func() { sh(t, fmt.Sprintf("rm -rf /tmp/vmsan-*-%d", user)) })

	run := func(args ...string) string {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), dir+"/vmsan", args...)
		cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "VMSAN_DIR=" + dir + "/state", "XDG_RUNTIME_DIR=" + dir + "/run", "VMSAN_TEMPLATES=off"}
		cmd.Dir = "/"
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: user, Gid: user}}
		var stderr strings.Builder
		cmd.Stderr = &stderr
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("vmsan %v: %v: %s", args, err, &stderr)
		}
		return strings.TrimSpace(string(out))
	}
	if got := run("run", "--memory", "128", "--", "id", "-u"); got != "0" {
		t.Errorf("the guest's user is %q", got)
	}
	run("create", "--memory", "128", "--name", "web")
	var vm api.VM
	if err := json.Unmarshal([]byte(run("inspect", "web")), &vm); err != nil {
		t.Fatal(err)
	}
	if vm.Isolation == nil || vm.Isolation.UID != user || vm.Isolation.Namespaces || vm.Isolation.Cgroup {
		t.Errorf("isolation is %+v", vm.Isolation)
	}
	var stats api.Stats
	if err := json.Unmarshal([]byte(run("stats", "--no-stream", "--json", "web")), &stats); err != nil {
		t.Fatal(err)
	}
	if stats.Host == nil || stats.Host.RSSBytes == 0 || stats.Host.Disk == nil || stats.Rates == nil || stats.Guest == nil {
		t.Errorf("stats are %+v", stats)
	}
	run("exec", "web", "sh", "-c", "echo kept > /root/file")
	run("stop", "--timeout", "1m", "web")
	run("start", "web")
	if got := run("exec", "web", "cat", "/root/file"); got != "kept" {
		t.Errorf("the file holds %q", got)
	}
	run("snapshot", "create", "web", "--name", "saved")
	run("create", "--snapshot", "saved", "--name", "copy")
	run("fork", "copy", "--name", "fork")
	run("pause", "--reclaim", "copy")
	run("resume", "copy")
	for _, name := range []string{"copy", "fork-1"} {
		if got := run("exec", name, "cat", "/root/file"); got != "kept" {
			t.Errorf("in %s the file holds %q", name, got)
		}
	}
	run("rm", "-f", "web", "copy", "fork-1")
	for _, left := range []string{"state/sandboxes", "state/tmp"} {
		if list := names(t, filepath.Join(dir, left)); len(list) > 0 {
			t.Errorf("%s holds %v", left, list)
		}
	}
}

// userDir is a directory that everybody can reach.
func userDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "vmsan-user-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

func sh(t testing.TB, command string) {
	t.Helper()
	if out, err := exec.Command("sh", "-c", command).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v: %s", command, err, out)
	}
}
