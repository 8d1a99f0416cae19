package e2e

import (
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
// of its steps, by the death of the process and by an error. Whatever was under
// way, vmsan gc leaves nothing that is nobody's, and what is left can be used and
// removed.
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
		if os.Getenv(faultsVar) == "" && i%3 != 0 {
			continue // all of them take half an hour
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
		todo := []string{"kill", lacks[(n+i)%len(lacks)]}
		if short {
			todo = todo[n%2:][:1]
		}
		if !seen.first(point) && len(todo) > 1 {
			todo = todo[i%2:][:1] // the other way it was broken off elsewhere
		}
		for _, action := range todo {
			f.try(d, point, action)
			seen.faults.Add(1)
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

// try has it broken off at one point.
func (f *faults) try(d deed, point, action string) {
	f.t.Helper()
	f.begin(d)
	f.write(f.order, point+"="+action)
	_, err := f.vmsan(d.args...)
	f.write(f.order, "")
	what := fmt.Sprintf("vmsan %s, after %q, %s (%v)", strings.Join(d.args, " "), point, action, err)
	if out, err := f.vmsan("gc"); err != nil {
		f.t.Errorf("%s: gc: %s, %v", what, out, err)
	}
	f.noLeftovers(what)
	if d.check != nil {
		d.check(f.host, what)
	}
	f.clear(what)
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
