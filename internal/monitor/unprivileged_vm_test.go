package monitor_test

import (
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vmsan/vmsan/api"
	"github.com/vmsan/vmsan/internal/testenv"
)

// Without root a sandbox runs as the user, behind system call filters alone,
// and inspect says so.
func TestWithoutRoot(t *testing.T) {
	vmsan := testenv.RequireVmsan(t).AsNobody(t)
	id := vmsan.Create(t, "--network", "none")
	vmsan.Exec(t, id, "sh", "-c", "echo kept > /root/file")

	vm := vmsan.Inspect(t, id)
	for name, pid := range map[string]int{"monitor": vm.PIDs.Monitor, "VMM": vm.PIDs.VMM, "gate": vm.PIDs.Gate} {
		got := status(t, pid)
		if got["Uid"] != "65534 65534 65534 65534" || got["CapEff"] != "0000000000000000" {
			t.Errorf("%s: its users are %s, its capabilities %s", name, got["Uid"], got["CapEff"])
		}
		if name == "monitor" {
			continue
		}
		if got["Seccomp"] != "2" || got["NoNewPrivs"] != "1" {
			t.Errorf("%s: Seccomp is %s, NoNewPrivs %s", name, got["Seccomp"], got["NoNewPrivs"])
		}
	}
	if vm.Isolation.Cgroup || vm.Isolation.Namespaces || !vm.Isolation.Seccomp {
		t.Errorf("inspect says %+v", vm.Isolation)
	}
	info, err := os.Stat(vmsan.Layout.Run)
	if err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("the directory of sockets: %v, %v", info.Mode(), err)
	}

	vmsan.Run(t, "stop", id)
	vmsan.Run(t, "start", id)
	if got := vmsan.Exec(t, id, "cat", "/root/file"); got != "kept" {
		t.Errorf("after stop and start the file holds %q", got)
	}
	hold(t, vmsan.Inspect(t, id).PIDs.Gate).signal(t, unix.SIGKILL)
	if got := vmsan.Exec(t, id, "echo", "again"); got != "again" {
		t.Errorf("after the gate's death the guest says %q", got)
	}
	hold(t, vmsan.Inspect(t, id).PIDs.VMM).signal(t, unix.SIGKILL)
	eventually(t, "the end is noticed", func() bool { return vmsan.Inspect(t, id).Status == api.StatusStopped })
	if got := vmsan.Inspect(t, id).Reason; !strings.Contains(got, "killed") {
		t.Errorf("the reason is %q", got)
	}
}
