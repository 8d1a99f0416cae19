package monitor

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/vmsan/vmsan/api"
	"github.com/vmsan/vmsan/internal/gate"
	"github.com/vmsan/vmsan/internal/guest"
	"github.com/vmsan/vmsan/internal/image"
	"github.com/vmsan/vmsan/internal/kernel"
	"github.com/vmsan/vmsan/internal/monitor/control"
	"github.com/vmsan/vmsan/internal/store"
	"github.com/vmsan/vmsan/internal/testenv"
	"github.com/vmsan/vmsan/internal/vmm"
	"github.com/vmsan/vmsan/internal/vmm/fake"
)

// TestMain makes the test binary a gate where the monitor starts one, as the
// vmsan binary is.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == gate.Command {
		if err := gate.Main(os.Args[2:], slog.New(slog.NewTextHandler(os.Stderr, nil))); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(testenv.Main(m))
}

const testID = "vm0123456789"

// patience bounds what should happen at once, on a busy host.
const patience = time.Minute

// newTestMonitor returns the monitor of a sandbox whose files are all there
// and empty, and whose machine is driver's. It gives nothing a user or cgroup
// of its own.
func newTestMonitor(t *testing.T, driver *fake.Driver, change func(*store.Record)) *monitor {
	t.Helper()
	layout := store.Layout{Dir: t.TempDir(), Run: shortDir(t)}
	record := &store.Record{
		ID: testID, Name: "web", Status: api.StatusCreating, CreatedAt: time.Now(),
		Spec: store.Spec{
			Image: "1234", ImageName: "debian", Kernel: "5678", Driver: "fake", Accelerator: "tcg",
			VCPUs: 2, MemoryMiB: 256, Network: "none", BootTimeout: patience, Env: map[string]string{"A": "b"},
		},
	}
	if change != nil {
		change(record)
	}
	for _, path := range []string{
		image.Store{Layout: layout}.RootfsPath(record.Spec.Image), layout.Overlay(testID),
		kernel.VmlinuxPath(layout, record.Spec.Kernel), kernel.InitramfsPath(layout, record.Spec.Kernel),
	} {
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := layout.Save(record); err != nil {
		t.Fatal(err)
	}
	m, err := newMonitor(layout, testID, Helpers{Driver: func(store.Layout, store.Spec) (vmm.Driver, error) { return driver, nil }})
	if err != nil {
		t.Fatal(err)
	}
	m.root = false
	return m
}

// shortDir is a directory whose sockets' paths are short enough.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "vmsan-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// running is a monitor that has brought its sandbox up and waits.
type running struct {
	*monitor
	t      *testing.T
	vm     *fake.Machine
	cancel context.CancelCauseFunc
	ended  chan error
}

func run(t *testing.T, change func(*store.Record)) *running {
	t.Helper()
	driver := &fake.Driver{}
	return bringUp(t, newTestMonitor(t, driver, change), driver)
}

func bringUp(t *testing.T, m *monitor, driver *fake.Driver) *running {
	t.Helper()
	ctx, cancel := context.WithCancelCause(t.Context())
	if err := m.bringUp(ctx); err != nil {
		t.Fatal(err)
	}
	r := &running{monitor: m, t: t, vm: driver.Machines()[0], cancel: cancel, ended: make(chan error, 1)}
	go func() { r.ended <- m.wait(ctx) }()
	t.Cleanup(func() {
		r.stop(0)
		cancel(nil)
	})
	return r
}

func (r *running) stop(grace time.Duration) {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := control.Dial(r.layout.ControlSocket(testID)).Stop(ctx, grace); err != nil && !errors.Is(err, control.ErrGone) {
		r.t.Errorf("stop: %v", err)
	}
}

// await waits for the end and checks what it left.
func (r *running) await(reason string) {
	r.t.Helper()
	select {
	case err := <-r.ended:
		if err != nil {
			r.t.Errorf("the monitor ended with %v", err)
		}
	case <-time.After(patience):
		r.t.Fatal("the monitor does not end")
	}
	checkEnded(r.t, r.layout, api.StatusStopped, reason)
}

func checkEnded(t *testing.T, layout store.Layout, status api.Status, reason string) {
	t.Helper()
	record, err := layout.Load(testID)
	if err != nil {
		t.Fatal(err)
	}
	if record.Status != status || record.Reason != reason {
		t.Errorf("the record says %s: %q; want %s: %q", record.Status, record.Reason, status, reason)
	}
	if !cmp.Equal(record.Host, store.Host{}) {
		t.Errorf("the record says that the host still has %+v", record.Host)
	}
	if _, err := os.Stat(layout.SandboxRun(testID)); !os.IsNotExist(err) {
		t.Errorf("the run directory is still there: %v", err)
	}
}

func (r *running) health() error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	client := guest.New(guest.DialSocket(r.layout.GuestSocket(testID)))
	defer client.Close()
	return client.Health(ctx)
}

func (r *running) killGate() {
	r.t.Helper()
	record, err := r.layout.Load(testID)
	if err != nil {
		r.t.Fatal(err)
	}
	if err := record.Host.Gate.Kill(); err != nil {
		r.t.Fatal(err)
	}
}

func TestLife(t *testing.T) {
	r := run(t, nil)
	if err := r.health(); err != nil {
		t.Error(err)
	}
	record, err := r.layout.Load(testID)
	if err != nil {
		t.Fatal(err)
	}
	if record.Status != api.StatusRunning || record.Host.VMM.PID == 0 || record.Host.Gate.PID == 0 {
		t.Errorf("the record says %s, %+v", record.Status, record.Host)
	}
	var stages []string
	for _, s := range record.Trace {
		stages = append(stages, s.Name)
	}
	if got, want := strings.Join(stages, ", "), "record, host, vmm, gate, guest"; got != want {
		t.Errorf("got stages %s, want %s", got, want)
	}
	given := r.driver.(*fake.Driver).Started()
	if want := "machine vm0123456789: 2 CPUs, 256 MiB, tcg\nkernel: GODEBUG=asyncpreemptoff=1\ndisk image: read-only\ndisk overlay: writable\n"; given[0] != want {
		t.Errorf("the driver got\n%s, want\n%s", given[0], want)
	}
	told := r.vm.Identities()
	if len(told) != 1 || told[0].Hostname != "web" || told[0].MachineID != machineID(testID) ||
		!cmp.Equal(told[0].Env, map[string]string{"A": "b", "VMSAN_ID": testID}) {
		t.Errorf("the guest was told %+v", told)
	}
	r.stop(patience)
	r.await("stopped")
}

// A client that came before the guest is served by it, and hears of the end of
// its gate.
func TestFirstStream(t *testing.T) {
	ours, theirs, err := vmm.SocketPair("first stream")
	if err != nil {
		t.Fatal(err)
	}
	defer ours.Close()
	stream, err := net.FileConn(ours)
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Close()
	stream.SetDeadline(time.Now().Add(patience))
	if _, err := io.WriteString(stream, "GET /health HTTP/1.1\r\nHost: guest\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	driver := &fake.Driver{}
	m := newTestMonitor(t, driver, nil)
	m.first = theirs
	r := bringUp(t, m, driver)
	response, err := http.ReadResponse(bufio.NewReader(stream), nil)
	if err != nil || response.StatusCode != http.StatusNoContent {
		t.Errorf("the guest answers %v, %v", response, err)
	}
	r.killGate()
	if n, err := stream.Read(make([]byte, 1)); n > 0 || err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("behind the gate's end come %d bytes, %v", n, err)
	}
}

func TestGuestThatEndsItself(t *testing.T) {
	r := run(t, nil)
	client := guest.New(guest.DialSocket(r.layout.GuestSocket(testID)))
	defer client.Close()
	if err := client.PowerOff(t.Context(), 10*time.Second); err != nil && !api.HasCode(err, api.ErrGuestLink) {
		t.Fatal(err)
	}
	r.await("the guest shut down")
}

func TestVMMThatCrashes(t *testing.T) {
	r := run(t, nil)
	r.vm.Crash("QEMU ended: signal: killed")
	r.await("QEMU ended: signal: killed")
}

func TestOrderToStop(t *testing.T) {
	r := run(t, nil)
	r.cancel(errors.New("terminated signal received"))
	r.await("stopped with the host")
}

func TestEphemeral(t *testing.T) {
	r := run(t, func(record *store.Record) { record.Ephemeral = true })
	ctx, cancel := context.WithCancel(t.Context())
	held := make(chan error, 1)
	go func() { held <- control.Dial(r.layout.ControlSocket(testID)).Hold(ctx) }()
	if err := r.health(); err != nil {
		t.Error(err)
	}
	cancel()
	<-held
	if err := <-r.ended; err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(r.layout.Sandbox(testID)); !os.IsNotExist(err) {
		t.Errorf("the sandbox is still there: %v", err)
	}
}

// A gate is replaced as often as it dies; the guest keeps its identity.
func TestGateIsReplaced(t *testing.T) {
	r := run(t, nil)
	for range 3 {
		r.killGate()
		if err := r.health(); err != nil && !api.HasCode(err, api.ErrGuestLink) {
			t.Error(err)
		}
		if err := r.health(); err != nil {
			t.Error(err)
		}
	}
	if n := len(r.vm.Identities()); n != 1 {
		t.Errorf("the guest was told who it is %d times", n)
	}
	// At once after a death, a stop is still orderly.
	r.killGate()
	r.stop(patience)
	r.await("stopped")
	if got := r.vm.Exit().Reason; got != "the guest shut down" {
		t.Errorf("the machine ended because: %s", got)
	}
}

// A guest that does not answer the new gate keeps nobody from stopping it.
func TestStopWhileGateIsReplaced(t *testing.T) {
	for _, grace := range []time.Duration{0, 20 * time.Millisecond} {
		r := run(t, nil)
		if err := r.vm.Pause(t.Context()); err != nil {
			t.Fatal(err)
		}
		r.killGate()
		time.Sleep(2 * shortestPause)
		r.stop(grace)
		r.await("stopped")
	}
}

// A request to stop at once is heard while an earlier one waits for the guest.
func TestStopIsCutShort(t *testing.T) {
	r := run(t, nil)
	if err := r.vm.Pause(t.Context()); err != nil {
		t.Fatal(err)
	}
	patient := make(chan struct{})
	go func() {
		defer close(patient)
		r.stop(24 * time.Hour)
	}()
	time.Sleep(20 * time.Millisecond)
	r.stop(0)
	<-patient
	r.await("stopped")
}

// The console of a guest that prints without end is bounded, and its end is
// what is kept.
func TestConsoleLog(t *testing.T) {
	r := run(t, nil)
	line := bytes.Repeat([]byte("0123456789abcde\n"), 1<<16)
	for range 50 {
		if err := r.vm.Print(line); err != nil {
			t.Fatal(err)
		}
	}
	if err := r.vm.Print([]byte("the end\n")); err != nil {
		t.Fatal(err)
	}
	r.stop(0)
	r.await("stopped")
	text, err := os.ReadFile(r.layout.Console(testID))
	if err != nil || len(text) > 1<<20 || !bytes.HasSuffix(text, []byte("0123456789abcde\nthe end\n")) {
		t.Errorf("the log has %d bytes and ends in %q, %v", len(text), text[max(len(text)-40, 0):], err)
	}
	if lines := tail(r.layout.Console(testID)); len(lines) != tailLines || lines[tailLines-1] != "the end" {
		t.Errorf("the tail is %q", lines)
	}
}

func TestGuestThatIsNeverReady(t *testing.T) {
	m := newTestMonitor(t, &fake.Driver{Silent: true}, func(r *store.Record) { r.Spec.BootTimeout = 500 * time.Millisecond })
	err := m.bringUp(t.Context())
	failure := api.AsError(err)
	if failure.Code != api.ErrTimeoutAgent || !strings.HasPrefix(failure.Message, "the guest did not say ready within 500ms; its VMM has run for ") {
		t.Errorf("got %+v", failure)
	}
	if len(failure.Console) != 1 || !strings.HasPrefix(failure.Console[0], "fake guest: ") {
		t.Errorf("the error comes with the console %q", failure.Console)
	}
	checkEnded(t, m.layout, api.StatusError, failure.Message)
}

func TestStopDuringBringUp(t *testing.T) {
	m := newTestMonitor(t, &fake.Driver{Silent: true}, nil)
	ctx, cancel := context.WithCancelCause(t.Context())
	time.AfterFunc(100*time.Millisecond, func() { cancel(errors.New("terminated signal received")) })
	err := m.bringUp(ctx)
	if err == nil || !strings.Contains(err.Error(), "terminated signal received") {
		t.Errorf("got %v", err)
	}
	checkEnded(t, m.layout, api.StatusError, "the sandbox's monitor was told to stop: terminated signal received")
}

func TestGuestThatEndsEarly(t *testing.T) {
	driver := &fake.Driver{Silent: true}
	m := newTestMonitor(t, driver, nil)
	go func() {
		for len(driver.Machines()) == 0 {
			time.Sleep(time.Millisecond)
		}
		driver.Machines()[0].Crash("QEMU ended: exit status 1: out of luck")
	}()
	failure := api.AsError(m.bringUp(t.Context()))
	// It may have ended before there was a gate.
	want := "the guest ended before it said ready: QEMU ended: exit status 1: out of luck"
	if failure.Code != api.ErrVMBoot || failure.Message != want {
		t.Errorf("got %s: %s", failure.Code, failure.Message)
	}
	checkEnded(t, m.layout, api.StatusError, want)
}

func TestMissingFiles(t *testing.T) {
	for name, path := range map[string]func(store.Layout) string{
		"overlay": func(l store.Layout) string { return l.Overlay(testID) },
		"image":   func(l store.Layout) string { return image.Store{Layout: l}.RootfsPath("1234") },
		"VMM":     func(l store.Layout) string { return kernel.VmlinuxPath(l, "5678") },
	} {
		m := newTestMonitor(t, &fake.Driver{}, nil)
		if err := os.Remove(path(m.layout)); err != nil {
			t.Fatal(err)
		}
		err := m.bringUp(t.Context())
		if err == nil || !strings.Contains(err.Error(), name) || !errors.Is(err, os.ErrNotExist) {
			t.Errorf("without the %s: got %v", name, err)
		}
		checkEnded(t, m.layout, api.StatusError, err.Error())
	}
}

func TestPause(t *testing.T) {
	var p pause
	var got []time.Duration
	for range 10 {
		got = append(got, p.next())
	}
	want := []time.Duration{50e6, 100e6, 200e6, 400e6, 800e6, 1600e6, 3200e6, 6400e6, 10e9, 10e9}
	if diff := cmp.Diff(got, want); diff != "" {
		t.Errorf("got the first, want the second:\n%s", diff)
	}
	p.began = time.Now().Add(-2 * youth)
	if got := p.next(); got != shortestPause {
		t.Errorf("after a long life: got %s, want %s", got, shortestPause)
	}
}

// whileRecordsFail has no record be written while do runs.
func (r *running) whileRecordsFail(do func()) {
	r.t.Helper()
	from, away := r.layout.Sandbox(testID), r.layout.Sandbox(testID)+".away"
	if err := os.Rename(from, away); err != nil {
		r.t.Fatal(err)
	}
	do()
	if err := os.Rename(away, from); err != nil {
		r.t.Fatal(err)
	}
}

// Whoever had it paused, resumed or saved may be gone, and what was to be done
// may fail: a sandbox that is said to run does, and its guest does not hold
// still.
func TestGoesOn(t *testing.T) {
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	save := func(r *running, stand bool) error {
		_, err := r.Save(r.t.Context(), control.SaveRequest{State: filepath.Join(r.t.TempDir(), "state"), Stand: stand})
		return err
	}
	for name, test := range map[string]struct {
		do     func(r *running) error
		failed string // of the error; "" for none
	}{
		"resumed by one who goes": {func(r *running) error {
			if err := errors.Join(r.Pause(t.Context()), save(r, false)); err != nil {
				return err
			}
			if !r.vm.HoldsStill() || !r.vm.Stands() {
				return errors.New("it does not hold still while it is paused")
			}
			leaving, leave := context.WithCancel(t.Context())
			r.vm.OnResume(leave)
			return r.Resume(leaving)
		}, ""},
		"paused by one who has gone": {func(r *running) error { return r.Pause(gone) }, "context canceled"},
		"paused, which is not written": {func(r *running) (err error) {
			r.whileRecordsFail(func() { err = r.Pause(t.Context()) })
			return err
		}, "no such file"},
		"saved for good, which is not written": {func(r *running) (err error) {
			r.whileRecordsFail(func() { err = save(r, true) })
			return err
		}, "no such file"},
		"saved, and the machine goes on later": {func(r *running) error {
			r.vm.RefuseResume(3)
			return save(r, false)
		}, "not now"},
		"saved, and the guest goes on later": {func(r *running) error {
			r.vm.RefuseThaw(2)
			return save(r, false)
		}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			r := run(t, nil)
			err := test.do(r)
			if test.failed == "" && err != nil || test.failed != "" && (err == nil || !strings.Contains(err.Error(), test.failed)) {
				t.Errorf("got error %v, want %q", err, test.failed)
			}
			if r.status() != api.StatusRunning {
				t.Errorf("the sandbox is %s", r.status())
			}
			for deadline := time.Now().Add(patience); r.vm.HoldsStill() || r.vm.Stands(); time.Sleep(10 * time.Millisecond) {
				if time.Now().After(deadline) {
					t.Fatal("the guest holds still for ever")
				}
			}
			if err := r.health(); err != nil {
				t.Error(err)
			}
			for _, step := range []struct {
				do   func(context.Context) error
				want api.Status
			}{{r.Pause, api.StatusPaused}, {r.Resume, api.StatusRunning}} {
				if err := step.do(t.Context()); err != nil || r.status() != step.want {
					t.Errorf("it is %s, not %s: %v", r.status(), step.want, err)
				}
			}
		})
	}
}

// A gate that dies while a guest that holds still is woken for its shutdown is
// replaced, and the guest is asked by the next one.
func TestWakeWithoutGate(t *testing.T) {
	r := run(t, nil)
	r.wakeTime = patience
	if err := r.Pause(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Save(t.Context(), control.SaveRequest{State: filepath.Join(t.TempDir(), "state")}); err != nil {
		t.Fatal(err)
	}
	r.vm.OnResume(r.killGate)
	r.stop(patience)
	r.await("stopped")
	if got := r.vm.Exit().Reason; got != "the guest shut down" || r.vm.HoldsStill() {
		t.Errorf("the machine ended because: %s; its commands held still: %t", got, r.vm.HoldsStill())
	}
}

// Who stops a sandbox does not wait for it to be saved: that is given up, and the
// guest shuts down in order.
func TestStopWhileSaving(t *testing.T) {
	r := run(t, nil)
	r.wakeTime = patience
	saving, saved := make(chan struct{}), make(chan error, 1)
	r.vm.OnSave(func() { close(saving) })
	go func() {
		_, err := r.Save(t.Context(), control.SaveRequest{State: filepath.Join(t.TempDir(), "state")})
		saved <- err
	}()
	<-saving
	r.stop(patience)
	r.await("stopped")
	if err := <-saved; !api.HasCode(err, api.ErrVMNotRunning) {
		t.Errorf("saved: %v", err)
	}
	if got := r.vm.Exit().Reason; got != "the guest shut down" || r.vm.HoldsStill() {
		t.Errorf("the machine ended because: %s; its commands held still: %t", got, r.vm.HoldsStill())
	}
}

// Once a sandbox ends nobody has it pause any more, or go on from where it was
// saved: it has moved since.
func TestNothingChangesAtTheEnd(t *testing.T) {
	r := run(t, nil)
	if _, err := r.Save(t.Context(), control.SaveRequest{State: filepath.Join(t.TempDir(), "state"), Stand: true}); err != nil {
		t.Fatal(err)
	}
	tried := make(chan error, 1)
	r.vm.RefuseThaw(1)
	r.vm.OnResume(func() {
		// It waits for the one who wakes the guest, and comes after it.
		go func() { tried <- r.Leave(t.Context(), "memory", "state") }()
	})
	r.stop(patience)
	r.await("stopped")
	if err := <-tried; !api.HasCode(err, api.ErrVMNotRunning) {
		t.Errorf("it is to go on from where it was: %v", err)
	}
	if err := r.Pause(t.Context()); !api.HasCode(err, api.ErrVMNotRunning) {
		t.Errorf("paused after its end: %v", err)
	}
}

func TestBoundedWriter(t *testing.T) {
	var out bytes.Buffer
	w := &boundedWriter{w: &out, left: 5}
	for _, line := range []string{"ab", "cde", "f"} {
		if n, err := w.Write([]byte(line)); n != len(line) || err != nil {
			t.Errorf("got %d, %v", n, err)
		}
	}
	if got := out.String(); got != "abcde" {
		t.Errorf("got %q", got)
	}
}
