package e2e

import (
	"strings"
	"testing"
)

// TestVolumeOfTheKilled kills the VMM or the monitor of a sandbox that writes
// to a volume, or the command that waits for one: the volume is free at once,
// what the guest had synced is in it, and it is whole.
func TestVolumeOfTheKilled(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	for _, victim := range []string{"monitor", "vmm"} {
		h.must("create", "--name", "writer", "--network", "none", "--volume", "data:/srv")
		h.must("exec", "writer", "sh", "-c", "echo "+victim+" >>/srv/file; sync; while :; do date; done >/srv/log 2>&1 &")
		pids := h.inspect("writer").PIDs
		killed := h.process(map[string]int{"monitor": pids.Monitor, "vmm": pids.VMM}[victim])
		if err := killed.Kill(); err != nil {
			t.Fatal(err)
		}
		h.vmsan("wait", "writer")
		// Its journal has not been replayed, which a reader cannot do.
		if _, err := h.vmsan("run", "--network", "none", "--volume", "data:/srv:ro", "--", "true"); err == nil || !strings.Contains(err.Error(), "mount it without :ro once") {
			t.Errorf("%s killed: a reader comes before the journal is replayed: %v", victim, err)
		}
		h.must("run", "--network", "none", "--volume", "data:/srv", "--", "grep", "-x", victim, "/srv/file")
		h.must("run", "--network", "none", "--volume", "data:/srv:ro", "--", "grep", "-x", victim, "/srv/file")
		h.must("rm", "-f", "writer")
	}
	h.must("volume", "rm", "data")
}
