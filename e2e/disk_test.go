package e2e

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vmsan/vmsan/api"
)

// TestDiskLimits: a sandbox writes as slowly as it was told to, to its own disk
// and to volumes, after it was restored, was forked or has grown.
func TestDiskLimits(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	const mib, rate, iops = 12, 4, 25
	h.must("create", "--name", "slow", "--disk-rate", fmt.Sprint(rate, "m"))
	h.must("create", "--name", "few", "--network", "none", "--disk-iops", fmt.Sprint(iops), "--volume", "data:/srv")
	if vm := h.inspect("slow"); !slices.ContainsFunc(vm.Trace, func(s api.Stage) bool { return strings.HasSuffix(s.Detail, "restored") }) {
		t.Errorf("it was not restored from the template: %+v", vm.Trace)
	}
	h.must("fork", "slow", "--name", "copy")
	h.must("resize", "slow", "--disk", "11g")
	// From memory, which cannot be slow.
	const large, small = "dd if=/dev/zero of=%s bs=1M count=%d conv=fsync", "dd if=/dev/zero of=%s bs=4k count=%d oflag=dsync"
	for _, c := range []struct {
		box, path, command string
		count              int
		least              time.Duration
	}{
		{"slow", "/root/file", large, mib, (mib - 1) * time.Second / rate},
		{"copy-1", "/root/file", large, mib, (mib - 1) * time.Second / rate},
		{"few", "/root/file", small, 3 * iops, 2 * time.Second},
		{"few", "/srv/file", small, 3 * iops, 2 * time.Second},
	} {
		began := time.Now()
		h.sh(c.box, fmt.Sprintf(c.command, c.path, c.count))
		took := time.Since(began)
		t.Logf("%s wrote %s in %s, and not in less than %s", c.box, c.path, took.Round(10*time.Millisecond), c.least)
		if took < c.least {
			t.Errorf("%s wrote %s in %s; its limit makes that %s", c.box, c.path, took, c.least)
		}
	}
	h.sh("slow", "test $(df -k --output=size / | tail -1) -gt 10500000")
	if vm := h.inspect("copy-1"); vm.DiskBytesPerSecond != rate<<20 || vm.DiskIOPS != 0 {
		t.Errorf("the fork may do %d bytes and %d operations a second", vm.DiskBytesPerSecond, vm.DiskIOPS)
	}
}
