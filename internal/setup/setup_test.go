package setup

import (
	"archive/tar"
	"bytes"
	"context"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"golang.org/x/sync/errgroup"

	"github.com/vmsan/vmsan/api"
	"github.com/vmsan/vmsan/internal/image"
	"github.com/vmsan/vmsan/internal/kernel"
	"github.com/vmsan/vmsan/internal/store"
)

// forgeKernel makes a file that is as much of a kernel as setup looks at. It
// has no modules.
func forgeKernel(t *testing.T, version string) string {
	t.Helper()
	machine := elf.EM_X86_64
	if runtime.GOARCH == "arm64" {
		machine = elf.EM_AARCH64
	}
	body := []byte("Linux version " + version + " (builder)")
	var b bytes.Buffer
	err := errors.Join(
		binary.Write(&b, binary.LittleEndian, elf.Header64{
			Ident: [elf.EI_NIDENT]byte{0x7f, 'E', 'L', 'F', byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), byte(elf.EV_CURRENT)},
			Type:  uint16(elf.ET_EXEC), Machine: uint16(machine), Version: 1,
			Phoff: 64, Ehsize: 64, Phentsize: 56, Phnum: 1, Shentsize: 64,
		}),
		binary.Write(&b, binary.LittleEndian, elf.Prog64{Type: uint32(elf.PT_LOAD), Off: 120, Filesz: uint64(len(body))}),
	)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "vmlinux")
	if err := os.WriteFile(path, append(b.Bytes(), body...), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// host is a state directory and what setup does with it.
type host struct {
	t      *testing.T
	opts   Options
	probes []string
	events []string
	broken map[string]error // what each accelerator's probe returns
}

// newHost has the default image already: building one takes the network.
func newHost(t *testing.T) *host {
	t.Helper()
	h := &host{t: t, broken: map[string]error{}}
	h.opts = Options{
		Layout: store.Layout{Dir: filepath.Join(t.TempDir(), "state")},
		Kernel: forgeKernel(t, "6.1.0"),
		Agent:  []byte("agent"),
		Accels: []string{"kvm", "tcg"},
		VMM:    "QEMU 7.2",
		Probe: func(_ context.Context, accel string, k kernel.Kernel) error {
			h.probes = append(h.probes, accel+" "+k.Version)
			return h.broken[accel]
		},
		Progress: func(e Event) { h.events = append(h.events, fmt.Sprintf("%s %s", e.Step, e.State)) },
	}
	h.importImage()
	return h
}

func (h *host) importImage() {
	h.t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: "./etc/", Mode: 0o755}); err != nil {
		h.t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		h.t.Fatal(err)
	}
	images := image.Store{Layout: h.opts.Layout}
	if _, err := images.ImportTar(h.t.Context(), &b, image.Meta{Name: image.DefaultName}); err != nil {
		h.t.Fatal(err)
	}
}

// run runs setup and returns its record; probes and events begin anew.
func (h *host) run() Record {
	h.t.Helper()
	h.probes, h.events = nil, nil
	r, err := Run(h.t.Context(), h.opts)
	if err != nil {
		h.t.Fatal(err)
	}
	return r
}

func (h *host) wantProbes(want ...string) {
	h.t.Helper()
	if diff := cmp.Diff(want, h.probes); diff != "" {
		h.t.Errorf("probes (-want +got):\n%s", diff)
	}
}

func (h *host) missing() []string {
	h.t.Helper()
	items, err := Check(h.opts.Layout, h.opts.Agent)
	if err != nil {
		h.t.Fatal(err)
	}
	var steps []string
	for _, i := range items {
		steps = append(steps, string(i.Step))
	}
	return steps
}

var comparePrefixes = cmpopts.EquateComparable(netip.Prefix{})

func TestRun(t *testing.T) {
	h := newHost(t)
	if diff := cmp.Diff([]string{"kernel", "image", "probe"}, h.missing()); diff != "" {
		t.Errorf("missing before (-want +got):\n%s", diff)
	}
	got := h.run()
	h.wantProbes("kvm 6.1.0", "tcg 6.1.0")
	if got.Accel != "kvm" || got.KernelVersion != "6.1.0" || got.Image == "" || got.ImageName != "debian" {
		t.Errorf("got %+v", got)
	}
	want := []string{"network done", "kernel running", "kernel done", "image kept", "probe running", "probe done", "probe running", "probe done"}
	if diff := cmp.Diff(want, h.events); diff != "" {
		t.Errorf("events (-want +got):\n%s", diff)
	}
	loaded, err := Load(h.opts.Layout)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(got, loaded, comparePrefixes); diff != "" {
		t.Errorf("record (-returned +loaded):\n%s", diff)
	}
	if steps := h.missing(); len(steps) > 0 {
		t.Errorf("missing afterwards: %v", steps)
	}
}

func TestRunAgainDoesNothing(t *testing.T) {
	h := newHost(t)
	first := h.run()
	second := h.run()
	h.wantProbes()
	if diff := cmp.Diff([]string{"network kept", "kernel kept", "image kept", "probe kept", "probe kept"}, h.events); diff != "" {
		t.Errorf("events (-want +got):\n%s", diff)
	}
	second.UpdatedAt = first.UpdatedAt
	if diff := cmp.Diff(first, second, comparePrefixes); diff != "" {
		t.Errorf("record (-first +second):\n%s", diff)
	}
	h.opts.Kernel = ""
	h.run()
	h.wantProbes()
}

func TestRunForAnotherAgent(t *testing.T) {
	h := newHost(t)
	first := h.run()
	h.opts.Agent = []byte("a newer agent")
	// The kernel comes from the state directory: the file is not needed.
	h.opts.Kernel = ""
	if diff := cmp.Diff([]string{"kernel"}, h.missing()); diff != "" {
		t.Errorf("missing (-want +got):\n%s", diff)
	}
	second := h.run()
	if second.Kernel == first.Kernel || second.KernelVersion != "6.1.0" {
		t.Errorf("got kernel %.12s, version %s, after %.12s", second.Kernel, second.KernelVersion, first.Kernel)
	}
	h.wantProbes("kvm 6.1.0", "tcg 6.1.0")
}

func TestRunForAnotherKernel(t *testing.T) {
	h := newHost(t)
	first := h.run()
	h.opts.Kernel = forgeKernel(t, "6.12.0")
	h.opts.KeepKernel = func(string) bool { return false }
	second := h.run()
	h.wantProbes("kvm 6.12.0", "tcg 6.12.0")
	got, err := kernel.List(h.opts.Layout)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{second.Kernel}, got); diff != "" {
		t.Errorf("kernels, of which %.12s is no longer needed (-want +got):\n%s", first.Kernel, diff)
	}
}

func TestRunKeepsKernelsInUse(t *testing.T) {
	h := newHost(t)
	first := h.run()
	h.opts.Kernel = forgeKernel(t, "6.12.0")
	h.opts.KeepKernel = func(digest string) bool { return digest == first.Kernel }
	h.run()
	if _, err := kernel.Check(h.opts.Layout, first.Kernel); err != nil {
		t.Error(err)
	}
}

func TestRunForAnotherVMM(t *testing.T) {
	h := newHost(t)
	h.run()
	h.opts.VMM = "QEMU 9.0"
	h.run()
	h.wantProbes("kvm 6.1.0", "tcg 6.1.0")
}

func TestRunRepairsTheKernel(t *testing.T) {
	h := newHost(t)
	first := h.run()
	path := kernel.VmlinuxPath(h.opts.Layout, first.Kernel)
	if err := os.Chmod(path, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, 10); err != nil {
		t.Fatal(err)
	}
	second := h.run()
	if _, err := kernel.Check(h.opts.Layout, second.Kernel); err != nil {
		t.Error(err)
	}
	h.wantProbes()
}

func TestRunWithBrokenKVM(t *testing.T) {
	h := newHost(t)
	h.broken["kvm"] = errors.New("boot: qemu aborted:\n\tfailed to set MSR")
	got := h.run()
	if got.Accel != "tcg" {
		t.Errorf("chose %q", got.Accel)
	}
	if v := got.Verdicts[0]; v.Works || v.Reason != "boot: qemu aborted: failed to set MSR" {
		t.Errorf("verdict on KVM: %+v", v)
	}
	// What does not work is tried again, what works is not.
	delete(h.broken, "kvm")
	if got := h.run(); got.Accel != "kvm" {
		t.Errorf("after the repair: chose %q", got.Accel)
	}
	h.wantProbes("kvm 6.1.0")
}

// One that was waited for in vain is not waited for at each setup.
func TestRunWithKVMThatHangs(t *testing.T) {
	h := newHost(t)
	h.broken["kvm"] = fmt.Errorf("boot: %w within 45s", ErrHung)
	h.run()
	delete(h.broken, "kvm")
	if got := h.run(); got.Accel != "tcg" || got.Verdicts[0].Reason != "boot: the guest did not answer within 45s" {
		t.Errorf("chose %q, with the verdicts %+v", got.Accel, got.Verdicts)
	}
	h.wantProbes()
	record, err := load(h.opts.Layout)
	if err != nil {
		t.Fatal(err)
	}
	record.Verdicts[0].Hung = "an earlier boot"
	if err := record.save(h.opts.Layout); err != nil {
		t.Fatal(err)
	}
	if got := h.run(); got.Accel != "kvm" {
		t.Errorf("after the host has booted: chose %q", got.Accel)
	}
	h.wantProbes("kvm 6.1.0")
}

func TestRunWithoutAccelerator(t *testing.T) {
	h := newHost(t)
	h.broken["kvm"] = errors.New("no /dev/kvm")
	h.broken["tcg"] = errors.New("no QEMU")
	_, err := Run(t.Context(), h.opts)
	if !api.HasCode(err, api.ErrSetupNoAccelerator) || !strings.Contains(err.Error(), "kvm: no /dev/kvm; tcg: no QEMU") {
		t.Errorf("got error %v", err)
	}
	if diff := cmp.Diff([]string{"probe"}, h.missing()); diff != "" {
		t.Errorf("missing (-want +got):\n%s", diff)
	}
}

func TestRunInterrupted(t *testing.T) {
	h := newHost(t)
	ctx, cancel := context.WithCancel(t.Context())
	works := h.opts.Probe
	h.opts.Probe = func(ctx context.Context, _ string, _ kernel.Kernel) error {
		cancel()
		return ctx.Err()
	}
	if _, err := Run(ctx, h.opts); !errors.Is(err, context.Canceled) {
		t.Errorf("got error %v", err)
	}
	// What it had is kept, and no verdict is made of the interruption.
	r, err := Load(h.opts.Layout)
	if err != nil || r.Kernel == "" || len(r.Verdicts) > 0 {
		t.Errorf("got record %+v, error %v", r, err)
	}
	h.opts.Probe = works
	if got := h.run(); got.Accel != "kvm" {
		t.Errorf("chose %q", got.Accel)
	}
	if h.events[1] != "kernel kept" {
		t.Errorf("the kernel was installed again: %v", h.events)
	}
}

func TestRunRemovesLeftovers(t *testing.T) {
	h := newHost(t)
	left := filepath.Join(h.opts.Layout.Tmp(), "kernel-deb-123.scratch")
	if err := os.MkdirAll(left, 0o755); err != nil {
		t.Fatal(err)
	}
	h.run()
	if _, err := os.Stat(left); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the leftover is still there: %v", err)
	}
	if h.events[0] != "clean done" {
		t.Errorf("first event is %q", h.events[0])
	}
}

func TestRunsAtOnceDoTheWorkOnce(t *testing.T) {
	h := newHost(t)
	var g errgroup.Group
	for range 4 {
		o := h.opts
		o.Progress = nil
		g.Go(func() error {
			_, err := Run(t.Context(), o)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	h.wantProbes("kvm 6.1.0", "tcg 6.1.0")
}

func TestRunSaysWhatItWaitsFor(t *testing.T) {
	h := newHost(t)
	h.run()
	started, finish := make(chan struct{}), make(chan struct{})
	slow := h.opts
	slow.Progress = nil
	slow.VMM = "another"
	slow.Accels = []string{"tcg"}
	slow.Probe = func(context.Context, string, kernel.Kernel) error {
		close(started)
		<-finish
		return nil
	}
	done := make(chan error, 1)
	go func() {
		_, err := Run(t.Context(), slow)
		done <- err
	}()
	<-started
	waiting := h.opts.Progress
	h.opts.Progress = func(e Event) {
		waiting(e)
		if e.Step == StepLock && e.State == Running {
			close(finish)
		}
	}
	h.run()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if got := strings.Join(h.events[:2], ", "); got != "lock running, lock done" {
		t.Errorf("events begin with %s", got)
	}
}

func TestRunRefuses(t *testing.T) {
	h := newHost(t)
	both := h.opts
	both.KernelDeb = both.Kernel
	if _, err := Run(t.Context(), both); !api.HasCode(err, api.ErrValidationFlags) {
		t.Errorf("two kernels: got error %v", err)
	}
	bad := h.opts
	bad.Kernel = filepath.Join(t.TempDir(), "missing")
	if _, err := Run(t.Context(), bad); !api.HasCode(err, api.ErrKernelInvalid) {
		t.Errorf("missing kernel: got error %v", err)
	}
	notDir := h.opts
	notDir.Layout.Dir = h.opts.Kernel
	if _, err := Run(t.Context(), notDir); !api.HasCode(err, api.ErrValidationStateDir) {
		t.Errorf("file for a state directory: got error %v", err)
	}
}

func TestLoad(t *testing.T) {
	l := store.Layout{Dir: t.TempDir()}
	if _, err := Load(l); !api.HasCode(err, api.ErrSetupRequired) || api.AsError(err).Hint != "vmsan setup" {
		t.Errorf("no record: got error %v", err)
	}
	for _, bad := range []string{"", "{", `{"format":99}`} {
		if err := os.WriteFile(l.SetupRecord(), []byte(bad), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Load(l); !api.HasCode(err, api.ErrSetupRequired) {
			t.Errorf("record %q: got error %v", bad, err)
		}
	}
}

func TestCheckSeesDamage(t *testing.T) {
	h := newHost(t)
	r := h.run()
	if err := os.Remove((image.Store{Layout: h.opts.Layout}).RootfsPath(r.Image)); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(h.opts.Layout.Kernel(r.Kernel)); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"kernel", "image"}, h.missing()); diff != "" {
		t.Errorf("missing (-want +got):\n%s", diff)
	}
}

func TestModelOf(t *testing.T) {
	for in, want := range map[string]string{
		"processor\t: 0\nmodel name\t: Some CPU @ 2 GHz\n\nprocessor\t: 1\nmodel name\t: Other\n":                 "Some CPU @ 2 GHz",
		"processor\t: 0\nCPU implementer\t: 0x41\nCPU part\t: 0xd0c\n\nprocessor\t: 1\nCPU implementer\t: 0x42\n": "0x41 0xd0c",
		"": runtime.GOARCH,
	} {
		if got := modelOf(in); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

func TestOneLine(t *testing.T) {
	if got, want := oneLine(" a\n\tb\xff "), "a b?"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if got := oneLine(strings.Repeat("ä", 1000)); len(got) > maxReason+3 || strings.Contains(got, "\ufffd") {
		t.Errorf("got %d bytes: %q", len(got), got)
	}
}
