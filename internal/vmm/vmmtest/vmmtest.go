// Package vmmtest is what every vmm.Driver has to pass.
package vmmtest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmsan/vmsan/internal/guest"
	"github.com/vmsan/vmsan/internal/link"
	"github.com/vmsan/vmsan/internal/vmm"
)

// limit bounds each step; machines are slow when many boot at once.
const limit = 2 * time.Minute

// Run runs the suite. spec returns a fresh Spec whose guest runs the agent.
func Run(t *testing.T, driver vmm.Driver, spec func(t *testing.T) vmm.Spec) {
	s := suite{driver: driver, spec: spec}
	t.Run("version", s.version)
	t.Run("features", s.features)
	t.Run("life", s.life)
	t.Run("stop", s.stop)
	t.Run("stop while paused", s.stopPaused)
	t.Run("boot anew", s.bootAnew)
	t.Run("console", s.console)
	t.Run("bad spec", s.badSpec)
	t.Run("start cancelled", s.startCancelled)
	if driver.Features().Snapshots {
		t.Run("snapshots", s.snapshots)
		t.Run("end while saving", s.endWhileSaving)
	}
}

type suite struct {
	driver vmm.Driver
	spec   func(t *testing.T) vmm.Spec
}

// life is one machine from its boot to its end; boots are what takes time.
func (s suite) life(t *testing.T) {
	spec := s.spec(t)
	ctx, vm := s.startSpec(t, spec)
	for _, part := range []struct {
		name string
		test func(*testing.T, context.Context, vmm.VM)
	}{
		{"guest answers", guestAnswers},
		{"no reboot of what is up", noReboot},
		{"many streams", manyStreams},
		{"next host", nextHost},
		{"pause and resume", pauseAndResume},
		{"resize", func(t *testing.T, ctx context.Context, vm vmm.VM) { resize(t, ctx, vm, spec.Disks) }},
		{"death", death},
	} {
		if !t.Run(part.name, func(t *testing.T) { part.test(t, ctx, vm) }) {
			return
		}
	}
}

func (s suite) start(t *testing.T) (context.Context, vmm.VM) {
	t.Helper()
	return s.startSpec(t, s.spec(t))
}

func (s suite) startSpec(t *testing.T, spec vmm.Spec) (context.Context, vmm.VM) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	t.Cleanup(cancel)
	vm, err := s.driver.Start(ctx, spec)
	if err != nil {
		t.Fatal(err)
	}
	attend(t, ctx, vm)
	return ctx, vm
}

// attend does for a machine what its monitor would.
func attend(t *testing.T, ctx context.Context, vm vmm.VM) {
	t.Helper()
	t.Cleanup(func() {
		if err := vm.Stop(ctx); err != nil {
			t.Errorf("stop: %v", err)
		}
	})
	drain(t, vm)
}

// drain takes what the guest prints, as a gate does.
func drain(t *testing.T, vm vmm.VM) {
	t.Helper()
	conn, err := net.FileConn(vm.Link().Console)
	if err != nil {
		t.Fatal(err)
	}
	var reader sync.WaitGroup
	reader.Go(func() { io.Copy(io.Discard, conn) })
	t.Cleanup(func() {
		conn.Close()
		reader.Wait()
	})
}

func dial(t *testing.T, ctx context.Context, vm vmm.VM) *link.Host {
	t.Helper()
	host, err := vm.Link().DialGuest(ctx)
	if err != nil {
		t.Fatalf("dial guest: %v", err)
	}
	t.Cleanup(func() { host.Close() })
	return host
}

// health asks the guest's agent over a stream of its own.
func health(ctx context.Context, host *link.Host) error {
	_, err := ask(ctx, host, http.MethodGet, "/health", "")
	return err
}

// maxAnswer bounds what is read of an answer, in bytes.
const maxAnswer = 1 << 20

// ask makes a request over a stream of its own.
func ask(ctx context.Context, host *link.Host, method, path, body string) (answer string, err error) {
	client := http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext:       func(ctx context.Context, _, _ string) (net.Conn, error) { return host.Dial(ctx) },
	}}
	request, err := http.NewRequestWithContext(ctx, method, "http://guest"+path, strings.NewReader(body))
	if err != nil {
		return "", err
	}
	request.Header.Set("Content-Type", "application/octet-stream")
	response, err := client.Do(request)
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	text, err := io.ReadAll(io.LimitReader(response.Body, maxAnswer))
	if err == nil && response.StatusCode/100 != 2 {
		err = fmt.Errorf("%s %s: %s: %s", method, path, response.Status, text)
	}
	return string(text), err
}

func (s suite) version(t *testing.T) {
	version, err := s.driver.Version(t.Context())
	if err != nil || version == "" {
		t.Fatalf("got version %q, %v", version, err)
	}
}

func (s suite) features(t *testing.T) {
	f := s.driver.Features()
	if f.Name == "" || len(f.Accelerators) == 0 || f.MinMemoryMiB <= 0 {
		t.Errorf("got features %+v", f)
	}
	for _, accelerator := range f.Accelerators {
		s.cpu(t, accelerator)
	}
}

// cpu asks twice: what is measured may differ a little.
func (s suite) cpu(t *testing.T, accelerator vmm.Accelerator) {
	t.Helper()
	var cpus [2]vmm.CPU
	for i := range cpus {
		var err error
		if cpus[i], err = s.driver.CPU(accelerator); err != nil {
			t.Fatal(err)
		}
	}
	a, b := cpus[0], cpus[1]
	if a.Model == "" || a.Model != b.Model {
		t.Errorf("the CPU is %q and %q", a.Model, b.Model)
	}
	if low, high := float64(min(a.TSCkHz, b.TSCkHz)), float64(max(a.TSCkHz, b.TSCkHz)); high-low > high/1000 {
		t.Errorf("its counter runs at %d kHz and %d kHz", a.TSCkHz, b.TSCkHz)
	}
}

func guestAnswers(t *testing.T, ctx context.Context, vm vmm.VM) {
	if vm.PID() <= 1 {
		t.Errorf("got PID %d", vm.PID())
	}
	if err := health(ctx, dial(t, ctx, vm)); err != nil {
		t.Fatal(err)
	}
}

func manyStreams(t *testing.T, ctx context.Context, vm vmm.VM) {
	host := dial(t, ctx, vm)
	var all sync.WaitGroup
	for range 50 {
		all.Go(func() {
			if err := health(ctx, host); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
}

// nextHost dials again while a conversation is going on, as a gate does that
// takes the place of one that died.
func nextHost(t *testing.T, ctx context.Context, vm vmm.VM) {
	first := dial(t, ctx, vm)
	stream, err := first.Dial(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(stream, "GET /health HT"); err != nil {
		t.Fatal(err)
	}
	first.Close()
	if err := health(ctx, dial(t, ctx, vm)); err != nil {
		t.Fatal(err)
	}
}

func pauseAndResume(t *testing.T, ctx context.Context, vm vmm.VM) {
	host := dial(t, ctx, vm)
	for i := range 10 { // whatever becomes of these, the machine still takes orders
		short, cancel := context.WithTimeout(ctx, time.Duration(i)*200*time.Microsecond)
		vm.Pause(short)
		vm.Resume(short)
		cancel()
	}
	for range 2 {
		if err := vm.Pause(ctx); err != nil {
			t.Fatal(err)
		}
	}
	answered := make(chan error, 1)
	go func() { answered <- health(ctx, host) }()
	select {
	case err := <-answered:
		t.Fatalf("a paused guest answered: %v", err)
	case <-time.After(200 * time.Millisecond):
	}
	for range 2 {
		if err := vm.Resume(ctx); err != nil {
			t.Fatal(err)
		}
	}
	if err := <-answered; err != nil {
		t.Fatal(err)
	}
}

// mayRaiseLimits tells whether this process has CAP_SYS_RESOURCE. Root in a
// container often has not.
func mayRaiseLimits(t *testing.T) bool {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		t.Fatal(err)
	}
	return data[0].Effective&(1<<unix.CAP_SYS_RESOURCE) != 0
}

// resize grows the last disk, which the guest sees and uses.
func resize(t *testing.T, ctx context.Context, vm vmm.VM, disks []vmm.Disk) {
	last := disks[len(disks)-1]
	info, err := last.File.Stat()
	if err != nil {
		t.Fatal(err)
	}
	size := info.Size() + 64<<20
	if err := last.File.Truncate(size); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		err := vm.DiskResized(ctx, last.Name, size)
		if errors.Is(err, unix.EPERM) && !mayRaiseLimits(t) {
			t.Logf("this process may not raise a VMM's limits, which is refused: %v", err)
			return
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if got, err := guest.New(dial(t, ctx, vm).Dial).Resize(ctx, size); err != nil || got != size {
		t.Errorf("the guest has %d bytes of %d, %v", got, size, err)
	}
	if err := vm.DiskResized(ctx, "nosuchdisk", size); err == nil {
		t.Error("a disk that is not there was resized")
	}
}

func (s suite) stop(t *testing.T) {
	ctx, vm := s.start(t)
	for range 2 {
		if err := vm.Stop(ctx); err != nil {
			t.Fatal(err)
		}
	}
	<-vm.Done()
	if exit := vm.Exit(); !exit.Clean {
		t.Errorf("got exit %+v after Stop", exit)
	}
	if err := vm.Pause(ctx); err == nil {
		t.Error("Pause of a stopped machine succeeded")
	}
	if err := vm.Resume(ctx); err == nil {
		t.Error("Resume of a stopped machine succeeded")
	}
	if err := vm.DiskResized(ctx, "overlay", 1<<30); err == nil {
		t.Error("DiskResized of a stopped machine succeeded")
	}
}

// stopPaused ends a machine whose guest cannot do anything about it.
func (s suite) stopPaused(t *testing.T) {
	ctx, vm := s.start(t)
	if err := vm.Pause(ctx); err != nil {
		t.Fatal(err)
	}
	if err := vm.Stop(ctx); err != nil {
		t.Fatal(err)
	}
	<-vm.Done()
}

// death is a VMM that ends by itself: the guest's agent asks for it.
func death(t *testing.T, ctx context.Context, vm vmm.VM) {
	host := dial(t, ctx, vm)
	stream, err := host.Dial(ctx)
	if err != nil {
		t.Fatal(err)
	}
	io.WriteString(stream, "POST /vmsan.guest.v1.Host/PowerOff HTTP/1.1\r\nHost: guest\r\n"+
		"Content-Type: application/json\r\nContent-Length: 2\r\n\r\n{}")
	select {
	case <-vm.Done():
	case <-ctx.Done():
		t.Fatal("the guest was asked to power off and still runs")
	}
	if exit := vm.Exit(); !exit.Clean || exit.Reason == "" {
		t.Errorf("got exit %+v after the guest shut down", exit)
	}
	select {
	case <-host.Closed():
	case <-ctx.Done():
		t.Error("the link of a dead machine is still open")
	}
}

func (s suite) console(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	spec := s.spec(t)
	// Loud, so that there is something to read.
	spec.Cmdline = append(spec.Cmdline, "loglevel=7")
	vm, err := s.driver.Start(ctx, spec)
	if err != nil {
		t.Fatal(err)
	}
	defer vm.Stop(ctx)
	conn, err := net.FileConn(vm.Link().Console)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetReadDeadline(time.Now().Add(limit))
	if _, err := io.ReadFull(conn, make([]byte, 64)); err != nil {
		t.Fatalf("read console: %v", err)
	}
}

// badSpec is refused by Start, or ends the machine at once.
func (s suite) badSpec(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	spec := s.spec(t)
	spec.Kernel = t.TempDir() + "/missing"
	vm, err := s.driver.Start(ctx, spec)
	if err == nil {
		vm.Stop(ctx)
		t.Fatal("a machine without a kernel started")
	}
	if !strings.Contains(err.Error(), "missing") {
		t.Errorf("got %q, which does not name the kernel", err)
	}
}

func (s suite) startCancelled(t *testing.T) {
	ctx, cancel := context.WithCancelCause(context.Background())
	gaveUp := errors.New("gave up")
	cancel(gaveUp)
	vm, err := s.driver.Start(ctx, s.spec(t))
	if err == nil {
		vm.Stop(context.Background())
		t.Fatal("a machine started after its context had ended")
	}
	if !errors.Is(err, gaveUp) {
		t.Errorf("got %v, want the context's cause", err)
	}
}
