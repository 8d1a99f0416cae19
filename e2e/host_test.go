package e2e

import (
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/fsnotify/fsnotify"
	"github.com/rogpeppe/go-internal/testscript"

	"github.com/vmsan/vmsan/internal/cgroup"
	"github.com/vmsan/vmsan/internal/monitor"
	"github.com/vmsan/vmsan/internal/setup"
	"github.com/vmsan/vmsan/internal/store"
)

// patience is how long anything may take on a busy machine.
const patience = 5 * time.Minute

// host is what a test uses of the machine.
type host struct {
	t      testing.TB
	layout store.Layout
	binary string
	env    []string // of its commands, beside the test's own

	mu  sync.Mutex
	ids map[string]bool // of all sandboxes there ever were
}

// watch takes down the ids of all sandboxes that the test makes, and has the
// host looked over at its end.
func (h *host) watch() {
	h.t.Helper()
	if err := h.layout.Init(); err != nil {
		h.t.Fatal(err)
	}
	watcher, err := fsnotify.NewWatcher()
	if err != nil {
		h.t.Fatal(err)
	}
	if err := watcher.Add(h.layout.Sandboxes()); err != nil {
		h.t.Fatal(err)
	}
	var watching sync.WaitGroup
	watching.Go(func() {
		for event := range watcher.Events {
			if id := filepath.Base(event.Name); store.ValidID(id) {
				h.mu.Lock()
				h.ids[id] = true
				h.mu.Unlock()
			}
		}
	})
	h.t.Cleanup(func() {
		h.removeAll()
		watcher.Close()
		watching.Wait()
		h.checkLeaks()
	})
}

// condition tells scripts whether KVM works here.
func (h *host) condition(name string) (bool, error) {
	if name != "kvm" {
		return false, fmt.Errorf("there is no condition %s", name)
	}
	record, err := setup.Load(h.layout)
	return record.Accel == "kvm", err
}

// vmsan runs the binary to its end.
func (h *host) vmsan(args ...string) (stdout string, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	cmd := h.command(ctx, args...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		return out.String(), &failure{args, err, errs.String()}
	}
	return out.String(), nil
}

func (h *host) command(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, h.binary, args...)
	cmd.Env = append(append(os.Environ(), "VMSAN_DIR="+h.layout.Dir), h.env...)
	return cmd
}

type failure struct {
	args   []string
	err    error
	stderr string
}

func (f *failure) Error() string {
	return "vmsan " + strings.Join(f.args, " ") + ": " + f.err.Error() + ": " + f.stderr
}

// must is vmsan, for what has to work. It returns stdout without the last
// newline.
func (h *host) must(args ...string) string {
	h.t.Helper()
	out, err := h.vmsan(args...)
	if err != nil {
		h.t.Fatal(err)
	}
	return strings.TrimSpace(out)
}

func (h *host) removeAll() {
	ids, err := h.layout.IDs()
	if err != nil {
		h.t.Error(err)
	}
	if len(ids) == 0 {
		return
	}
	if _, err := h.vmsan(append([]string{"remove", "--force"}, ids...)...); err != nil {
		h.t.Error(err)
	}
}

// checkLeaks fails the test for everything that sandboxes left on the host:
// processes, control groups, network devices, mounts, sockets and files.
func (h *host) checkLeaks() {
	marks := []string{h.layout.Dir, h.layout.Run}
	h.mu.Lock()
	ids := slices.Collect(maps.Keys(h.ids))
	h.mu.Unlock()
	for _, id := range ids {
		marks = append(marks, id)
		for _, group := range monitor.Cgroups(id) {
			if cgroup.Exists(group) {
				h.t.Errorf("control group %s is left", group)
			}
		}
		h.checkLink("vmsan" + strings.TrimPrefix(id, "vm"))
	}
	h.checkProcesses(marks)
	for _, dir := range []string{h.layout.Sandboxes(), h.layout.Run, h.layout.Tmp()} {
		if left := names(h.t, dir); len(left) > 0 {
			h.t.Errorf("in %s is left: %v", dir, left)
		}
	}
	if err := os.RemoveAll(h.layout.Run); err != nil {
		h.t.Error(err)
	}
}

// checkLink looks for a network device. The kernel removes it a moment after
// whoever held the sandbox's network has ended.
func (h *host) checkLink(name string) {
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		if _, err := net.InterfaceByName(name); err != nil {
			return
		}
		if time.Now().After(deadline) {
			h.t.Errorf("network device %s is left", name)
			return
		}
	}
}

// checkProcesses looks for processes of the test's own. A monitor gives its
// last answer a moment before it ends.
func (h *host) checkProcesses(marks []string) {
	deadline := time.Now().Add(5 * time.Second)
	left := h.processes(marks)
	for ; len(left) > 0 && time.Now().Before(deadline); left = h.processes(marks) {
		time.Sleep(20 * time.Millisecond)
	}
	for _, p := range left {
		h.t.Error(p)
	}
}

// processes are those whose command line has one of marks, or that see a mount
// with one: a VMM's command line names nothing of the host.
func (h *host) processes(marks []string) (found []string) {
	all, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		h.t.Error(err)
	}
	for _, dir := range all {
		for _, name := range []string{"cmdline", "mountinfo"} {
			text, err := os.ReadFile(filepath.Join(dir, name))
			if err != nil {
				continue // it has ended
			}
			for _, mark := range marks {
				if bytes.Contains(text, []byte(mark)) {
					found = append(found, fmt.Sprintf("process %s is left: its %s has %s", filepath.Base(dir), name, mark))
				}
			}
		}
	}
	return found
}

func names(t testing.TB, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil && !os.IsNotExist(err) {
		t.Error(err)
	}
	var list []string
	for _, e := range entries {
		// The index of slots and names, what is known of the VMM and the locks
		// of templates are the directory's, not a sandbox's.
		if !slices.ContainsFunc([]string{"index-", "version-", "t-"}, func(begin string) bool { return strings.HasPrefix(e.Name(), begin) }) {
			list = append(list, e.Name())
		}
	}
	return list
}

// untouched is the script command that fails if there is, or was since it was
// called last, any sandbox, or if there is anything new beside the state
// directory's own files.
func (h *host) untouched(ts *testscript.TestScript, _ bool, _ []string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.ids) > 0 {
		ts.Fatalf("sandboxes were made: %v", h.ids)
	}
	for _, dir := range []string{h.layout.Sandboxes(), h.layout.Run, h.layout.Tmp()} {
		if left := names(h.t, dir); len(left) > 0 {
			ts.Fatalf("%s holds %v", dir, left)
		}
	}
	known := []string{"setup.json", "setup.lock", "kernels", "images", "images.json", "blanks", "sandboxes", "templates", "snapshots", "lock", "tmp", "events"}
	entries, err := os.ReadDir(h.layout.Dir)
	ts.Check(err)
	if i := slices.IndexFunc(entries, func(e fs.DirEntry) bool { return !slices.Contains(known, e.Name()) }); i >= 0 {
		ts.Fatalf("%s is new in the state directory", entries[i].Name())
	}
}
