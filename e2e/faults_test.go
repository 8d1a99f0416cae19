package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	hubs "github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/renameio/v2"

	"github.com/vmsan/vmsan/api"
	binaries "github.com/vmsan/vmsan/internal/agent/binary"
	"github.com/vmsan/vmsan/internal/kernel"
	"github.com/vmsan/vmsan/internal/setup"
	"github.com/vmsan/vmsan/internal/testenv"
	images "github.com/vmsan/vmsan/internal/testenv/hub"
)

// faultsVar asks for a fault at every point, 500 random kills and all that
// hostile guests do; else there are a few of each.
const faultsVar = "VMSAN_TEST_FAULTS"

// shortStep is how many deeds there are for each that is broken off in any case.
const shortStep = 3

// deed is something done to a host that faults may break off.
type deed struct {
	args   []string
	before func(h *host) // makes what it is done to
	check  func(h *host, what string)
}

// deeds are all that changes what is on a host. What the guest of box was told
// is written before is there afterwards, or box is not.
func deeds(archive, ref string) []deed {
	box := func(h *host) {
		h.must("create", "--name", "box", "--network-policy", "allow-all")
		h.must("exec", "--no-stdin", "box", "sh", "-c", "echo acknowledged >/root/file; sync")
	}
	after := func(args ...string) func(h *host) {
		return func(h *host) {
			box(h)
			h.must(args...)
		}
	}
	saved := after("snapshot", "create", "box", "--name", "kept")
	return []deed{
		{args: []string{"create", "--name", "box", "--volume", "data:/srv"}},
		{args: []string{"run", "--", "true"}},
		{args: []string{"stop", "box"}, before: box, check: (*host).checkBox},
		{args: []string{"start", "box"}, before: after("stop", "box"), check: (*host).checkBox},
		{args: []string{"restart", "box"}, before: box, check: (*host).checkBox},
		{args: []string{"rm", "-f", "box"}, before: box},
		{args: []string{"rm", "box"}, before: after("stop", "box")},
		{args: []string{"rename", "box", "other"}, before: box},
		{args: []string{"pause", "box"}, before: box, check: (*host).checkBox},
		{args: []string{"resume", "box"}, before: after("pause", "box"), check: (*host).checkBox},
		{args: []string{"pause", "--reclaim", "box"}, before: box, check: (*host).checkBox},
		{args: []string{"resume", "box"}, before: after("pause", "--reclaim", "box"), check: (*host).checkBox},
		{args: []string{"snapshot", "create", "box"}, before: box, check: (*host).checkBox},
		{args: []string{"restore", "box", "kept"}, before: saved, check: (*host).checkBox},
		{args: []string{"create", "--snapshot", "kept"}, before: saved, check: (*host).checkBox},
		{args: []string{"snapshot", "rm", "kept"}, before: saved, check: (*host).checkBox},
		{args: []string{"fork", "box", "--count", "2", "--name", "copy"}, before: box, check: (*host).checkBox},
		{args: []string{"network", "box", "--network-policy", "deny-all"}, before: box, check: (*host).checkBox},
		{args: []string{"image", "import", archive, "tiny"}},
		{args: []string{"image", "pull", ref}},
		{args: []string{"volume", "create", "data"}},
		{args: []string{"setup"}, before: (*host).outdate, check: (*host).checkSetup},
	}
}

// outdate makes the host one that an older vmsan was set up on: its kernel has
// another agent, and there is no template of it.
func (h *host) outdate() {
	h.t.Helper()
	record, err := setup.Load(h.layout)
	if err != nil {
		h.t.Fatal(err)
	}
	current, err := kernel.Load(h.layout, record.Kernel)
	if err != nil {
		h.t.Fatal(err)
	}
	agent, err := binaries.Agent()
	if err != nil {
		h.t.Fatal(err)
	}
	old, err := kernel.WithAgent(h.t.Context(), h.layout, current, append(agent, "old"...))
	if err != nil {
		h.t.Fatal(err)
	}
	if err := kernel.Remove(h.layout, current.Digest); err != nil {
		h.t.Fatal(err)
	}
	// What is known of accelerators stays: to find out that one hangs takes long.
	record.Kernel = old.Digest
	text, err := json.Marshal(record)
	if err == nil {
		err = renameio.WriteFile(h.layout.SetupRecord(), text, 0o600)
	}
	if err == nil {
		err = os.RemoveAll(h.layout.Templates())
	}
	if err != nil {
		h.t.Fatal(err)
	}
}

// checkSetup checks that the next setup does what is left to do.
func (h *host) checkSetup(what string) {
	h.t.Helper()
	if out, err := h.vmsan("setup"); err != nil {
		h.t.Errorf("%s: %s, %v", what, out, err)
	}
	if out, err := h.vmsan("run", "--no-setup", "--", "echo", "up"); err != nil || out != "up\n" {
		h.t.Errorf("%s: run after setup: %q, %v", what, out, err)
	}
}

// checkBox checks that the sandbox box is there, works, and has what it was
// given.
func (h *host) checkBox(what string) {
	h.t.Helper()
	h.checkUsable(what, "box")
	if out, err := h.vmsan("exec", "--no-stdin", "box", "cat", "/root/file"); err != nil || out != "acknowledged\n" {
		h.t.Errorf("%s: what was acknowledged is lost: %q, %v", what, out, err)
	}
}

// TestFaults breaks off everything that changes what is on the host, after each
// of its steps, by the death of the process, by an error, and by an end to its
// work: the process hangs. Whatever was under way, vmsan gc leaves nothing that
// is nobody's, and what is left can be used and removed.
func TestFaults(t *testing.T) {
	t.Parallel()
	testenv.RequireRoot(t)
	binary := build(t, "../cmd/vmsan", "-tags", "faults")
	archive := filepath.Join(t.TempDir(), "tiny.tar")
	command(t, "tar", "-c", "-C", t.TempDir(), "-f", archive, ".")
	server := httptest.NewServer(hubs.New(hubs.Logger(log.New(io.Discard, "", 0))))
	t.Cleanup(server.Close)
	ref := server.Listener.Addr().String() + "/team/tiny:1"
	images.Push(t, ref, images.Image(t, runtime.GOARCH, v1.Config{}, []images.File{{Path: "etc/file", Content: "pulled"}}))
	seen := seen{points: map[string]bool{}}
	for i, d := range deeds(archive, ref) {
		if os.Getenv(faultsVar) == "" && i%shortStep != 0 {
			continue // all of them take an hour
		}
		t.Run(strings.Join(d.args[:min(len(d.args), 2)], " "), func(t *testing.T) {
			t.Parallel()
			h := newHost(t)
			h.binary = binary
			f := &faults{host: h, ref: ref, order: filepath.Join(t.TempDir(), "order"), log: filepath.Join(t.TempDir(), "log")}
			h.env = []string{"VMSAN_FAULT_ORDER=" + f.order, "VMSAN_FAULT_LOG=" + f.log}
			f.tryAll(d, i, &seen)
		})
	}
	t.Run("monitor that does not report", func(t *testing.T) {
		t.Parallel()
		h := newHost(t)
		h.binary = binary
		order := filepath.Join(t.TempDir(), "order")
		h.env = []string{"VMSAN_FAULT_ORDER=" + order}
		if err := os.WriteFile(order, []byte("monitor: recorded=hang"), 0o600); err != nil {
			t.Fatal(err)
		}
		if out, err := h.vmsan("create", "--cold", "--boot-timeout", "1s", "--json"); err == nil || !strings.Contains(out, string(api.ErrVMBoot)) {
			t.Errorf("create: %s, %v", out, err)
		}
		if ids, err := h.layout.IDs(); err != nil || len(ids) > 0 {
			t.Errorf("%v are left, %v", ids, err)
		}
	})
	t.Cleanup(func() { t.Logf("%d faults at %d points", seen.faults.Load(), len(seen.points)) })
}

// seen are the points at which something was broken off already.
type seen struct {
	mu     sync.Mutex
	points map[string]bool
	faults atomic.Int64
}

// first tells whether nobody has come to point before.
func (s *seen) first(point string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	first := !s.points[point]
	s.points[point] = true
	return first
}

type faults struct {
	*host
	order, log string // files; see internal/fault
	ref        string // of an image that may have been pulled
}

func (f *faults) write(path, text string) {
	f.t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		f.t.Fatal(err)
	}
}

// points does what is to be broken off, and returns the points it passes.
func (f *faults) points(d deed) []string {
	f.t.Helper()
	f.write(f.order, "")
	f.begin(d)
	f.write(f.log, "")
	f.must(d.args...)
	text, err := os.ReadFile(f.log)
	if err != nil {
		f.t.Fatal(err)
	}
	os.Remove(f.log)
	f.clear(strings.Join(d.args, " "))
	points := strings.Split(strings.TrimSpace(string(text)), "\n")
	slices.Sort(points)
	return slices.DeleteFunc(slices.Compact(points), func(p string) bool { return p == "" })
}

// tryAll breaks off a deed everywhere.
func (f *faults) tryAll(d deed, n int, seen *seen) {
	f.t.Helper()
	points := f.points(d)
	if len(points) == 0 {
		f.t.Fatal("it passes no point")
	}
	short := os.Getenv(faultsVar) == ""
	if short {
		points = points[n%len(points):][:1] // another one for each deed
	}
	for i, point := range points {
		todo := []string{"kill", lacks[(n+i)%len(lacks)], "hang"}
		if short {
			todo = todo[n/shortStep%len(todo):][:1]
		}
		if !seen.first(point) && len(todo) > 1 {
			todo = todo[i%len(todo):][:1] // the other ways it was broken off elsewhere
		}
		for _, action := range todo {
			if f.try(d, point, action) {
				seen.faults.Add(1)
			}
		}
	}
	f.t.Logf("broken off after each of %s", strings.Join(points, ", "))
}

// lacks are what a step may fail for: the disk is full or broken, there are no
// more files to be had, or it is not allowed.
var lacks = []string{"ENOSPC", "EIO", "EMFILE", "EPERM"}

func (f *faults) begin(d deed) {
	f.t.Helper()
	if d.before != nil {
		d.before(f.host)
	}
}

// try has it broken off at one point, and tells whether somebody came there: what
// is made once for all is not made again.
func (f *faults) try(d deed, point, action string) (happened bool) {
	f.t.Helper()
	f.begin(d)
	f.write(f.log, "")
	f.write(f.order, point+"="+action)
	var err error
	if action == "hang" {
		err = f.hang(d, point)
	} else {
		_, err = f.vmsan(d.args...)
	}
	f.write(f.order, "")
	if happened = f.passed(point); !happened {
		f.t.Logf("vmsan %s does not come to %q again", strings.Join(d.args, " "), point)
	}
	os.Remove(f.log)
	what := fmt.Sprintf("vmsan %s, after %q, %s (%v)", strings.Join(d.args, " "), point, action, err)
	if out, err := f.vmsan("gc"); err != nil {
		f.t.Errorf("%s: gc: %s, %v", what, out, err)
	}
	f.noLeftovers(what)
	if d.check != nil {
		d.check(f.host, what)
	}
	f.clear(what)
	return happened
}

// hang does a deed until a process hangs at point, and then what a user does who
// has waited for long enough: look, press Ctrl-C until the prompt comes back, and
// stop the sandbox if it still runs.
func (f *faults) hang(d deed, point string) error {
	f.t.Helper()
	cmd := f.command(context.Background(), d.args...)
	var errs bytes.Buffer
	cmd.Stderr, cmd.WaitDelay = &errs, time.Second // others may hold it
	if err := cmd.Start(); err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() { cmd.Process.Kill() })
	var err error
	ended := make(chan struct{})
	go func() {
		err = cmd.Wait()
		close(ended)
	}()
	reached := f.await(point, ended)
	f.write(f.order, "")
	if !reached {
		cmd.Process.Kill() // if it has not ended
		<-ended
		return err
	}
	began := time.Now()
	f.must("list")
	for n := 0; ; n++ {
		select {
		case <-ended:
		case <-time.After(time.Second):
			if n == 20 {
				f.t.Errorf("vmsan %s does not end by signals", strings.Join(d.args, " "))
				cmd.Process.Kill()
			}
			cmd.Process.Signal(os.Interrupt)
			continue
		}
		break
	}
	ids, idsErr := f.layout.IDs()
	if idsErr != nil {
		f.t.Error(idsErr)
	}
	for _, id := range ids {
		if _, err := f.vmsan("stop", "--timeout", "1s", id); err != nil && !strings.Contains(err.Error(), "VM not found") {
			f.t.Errorf("hangs at %q: %v", point, err)
		}
	}
	f.t.Logf("vmsan %s hung at %q, and was ended within %.1f s", strings.Join(d.args, " "), point, time.Since(began).Seconds())
	if err == nil {
		return nil
	}
	return &failure{d.args, err, errs.String()}
}

// passed tells whether some process has come to point.
func (f *faults) passed(point string) bool {
	f.t.Helper()
	text, err := os.ReadFile(f.log)
	if err != nil {
		f.t.Fatal(err)
	}
	return slices.Contains(strings.Split(string(text), "\n"), point)
}

// await waits until some process has come to point, and tells whether one has.
// The command may end before the one behind it does.
func (f *faults) await(point string, ended <-chan struct{}) bool {
	f.t.Helper()
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		if f.passed(point) {
			return true
		}
		select {
		case <-ended:
			deadline = time.Now().Add(min(time.Until(deadline), 5*time.Second))
		default:
		}
	}
	return false
}

func (f *faults) noLeftovers(what string) {
	f.t.Helper()
	var left api.Collection
	if err := json.Unmarshal([]byte(f.must("gc", "--dry-run", "--json")), &left); err != nil {
		f.t.Fatal(err)
	}
	if len(left.Removed)+len(left.Kept)+len(left.Failed) > 0 {
		f.t.Errorf("%s: gc leaves %+v", what, left)
	}
}

// clear removes all that was made, and has the host looked over.
func (f *faults) clear(what string) {
	f.t.Helper()
	f.removeAll()
	for _, s := range f.snapshots() {
		f.must("snapshot", "rm", s.ID)
	}
	for _, args := range [][]string{{"volume", "rm", "data"}, {"image", "rm", "tiny"}, {"image", "rm", f.ref}} {
		f.vmsan(args...) // there need not be one
	}
	f.noLeftovers(what)
	if f.checkLeaks(); f.t.Failed() {
		f.t.Fatalf("first seen after: %s", what)
	}
}
