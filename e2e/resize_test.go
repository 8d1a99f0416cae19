package e2e

import (
	"context"
	"os/exec"
	"syscall"
	"testing"
	"time"

	"github.com/vmsan/vmsan/internal/monitor"
)

// TestStopDuringResize: neither a guest nor a VMM that gives no answer to a
// change of its disk keeps a sandbox from being stopped, nor is the change lost.
func TestStopDuringResize(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.must("create", "--name", "box", "--network", "none", "--disk", "1g")
	vmm := h.process(h.inspect("box").PIDs.VMM)
	if err := vmm.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	resize := exec.Command(h.binary, "--dir", h.layout.Dir, "resize", "box", "--disk", "2g")
	if err := resize.Start(); err != nil {
		t.Fatal(err)
	}
	defer resize.Wait()
	for h.inspect("box").DiskBytes != 2<<30 {
		time.Sleep(50 * time.Millisecond)
	}
	// Far less than a resize waits, and more than a stop may take.
	ctx, cancel := context.WithTimeout(t.Context(), 90*time.Second+monitor.DefaultGrace)
	defer cancel()
	if out, err := exec.CommandContext(ctx, h.binary, "--dir", h.layout.Dir, "stop", "--timeout", "2s", "box").CombinedOutput(); err != nil {
		t.Fatalf("stop: %v: %s", err, out)
	}
	if err := resize.Wait(); err == nil {
		t.Error("the resize succeeded")
	}
	h.must("start", "box")
	h.sh("box", "test $(df -k --output=size / | tail -1) -gt 1500000")
}
