package monitor_test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/vmsan/vmsan/internal/testenv"
)

// status reads /proc/PID/status.
func status(t *testing.T, pid int) map[string]string {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	fields := map[string]string{}
	for line := range strings.Lines(string(text)) {
		name, value, _ := strings.Cut(line, ":")
		fields[name] = strings.Join(strings.Fields(value), " ")
	}
	return fields
}

// checkPrivileges wants a process that is nobody, can do nothing, and cannot
// become anybody. It returns the process's user.
func checkPrivileges(t *testing.T, name string, pid int, seccomp string) (uid string) {
	t.Helper()
	got := status(t, pid)
	for field, want := range map[string]string{
		"CapInh": "0000000000000000", "CapPrm": "0000000000000000", "CapEff": "0000000000000000",
		"CapBnd": "0000000000000000", "CapAmb": "0000000000000000",
		"NoNewPrivs": "1", "Seccomp": seccomp, "Groups": "",
	} {
		if got[field] != want {
			t.Errorf("%s: %s is %q, want %q", name, field, got[field], want)
		}
	}
	ids := append(strings.Fields(got["Uid"]), strings.Fields(got["Gid"])...)
	if len(slices.Compact(ids)) != 1 || ids[0] == "0" {
		t.Errorf("%s: its users are %q and groups %q, want the same one, and not root", name, got["Uid"], got["Gid"])
	}
	return ids[0]
}

func namespaces(t *testing.T, pid int) map[string]string {
	t.Helper()
	found := map[string]string{}
	for _, kind := range []string{"net", "pid", "ipc", "uts", "mnt"} {
		target, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", pid, kind))
		if err != nil {
			t.Fatal(err)
		}
		found[kind] = target
	}
	return found
}

// checkApart wants no namespace to be shared.
func checkApart(t *testing.T, pids map[string]int) {
	t.Helper()
	owner := map[string]string{}
	for name, pid := range pids {
		for kind, ns := range namespaces(t, pid) {
			if other, taken := owner[ns]; taken {
				t.Errorf("%s and %s share a %s namespace", name, other, kind)
			}
			owner[ns] = name
		}
	}
}

// rootOf lists what a process sees at its root.
func rootOf(t *testing.T, pid int) []string {
	t.Helper()
	entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/root", pid))
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// checkReadOnly wants each mount of a process to be read-only.
func checkReadOnly(t *testing.T, name string, pid int) {
	t.Helper()
	table, err := os.ReadFile(fmt.Sprintf("/proc/%d/mountinfo", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(table)) {
		if fields := strings.Fields(line); !strings.HasPrefix(fields[5], "ro,") {
			t.Errorf("%s: %s is mounted %s", name, fields[4], fields[5])
		}
	}
}

// limit reads a cgroup's limit, from the file of the version that the host
// has.
func limit(t *testing.T, group, v1, v2 string) string {
	t.Helper()
	controller, _, _ := strings.Cut(v1, ".")
	text, err := os.ReadFile(filepath.Join("/sys/fs/cgroup", controller, group, v1))
	if os.IsNotExist(err) {
		text, err = os.ReadFile(filepath.Join("/sys/fs/cgroup", group, v2))
	}
	if err != nil {
		t.Fatal(err)
	}
	return strings.Fields(string(text))[0]
}

func groupsOf(t *testing.T, pid int) string {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// Case N7: the two processes that read what a guest says have no rights.
func TestN7Isolation(t *testing.T) {
	vmsan := testenv.RequireVmsan(t)
	id := vmsan.Create(t, "--memory", "256", "--vcpus", "2")
	vm := vmsan.Inspect(t, id)

	vmmUser := checkPrivileges(t, "VMM", vm.PIDs.VMM, "2")
	gateUser := checkPrivileges(t, "gate", vm.PIDs.Gate, "2")
	if vmmUser == gateUser {
		t.Errorf("VMM and gate are the same user, %s", vmmUser)
	}
	if got := strconv.Itoa(int(vm.Isolation.UID)); got != vmmUser {
		t.Errorf("inspect says the VMM is user %s, and it is %s", got, vmmUser)
	}
	if !vm.Isolation.Seccomp || !vm.Isolation.Cgroup || !vm.Isolation.Namespaces {
		t.Errorf("inspect says %+v", vm.Isolation)
	}
	checkApart(t, map[string]int{"VMM": vm.PIDs.VMM, "gate": vm.PIDs.Gate, "host": os.Getpid()})

	if got, want := rootOf(t, vm.PIDs.Gate), []string{"vmsan"}; !slices.Equal(got, want) {
		t.Errorf("the gate's root holds %v, want %v", got, want)
	}
	for _, name := range rootOf(t, vm.PIDs.VMM) {
		if !slices.Contains([]string{"boot", "usr", "lib", "lib64"}, name) {
			t.Errorf("the VMM's root holds %s", name)
		}
	}
	checkReadOnly(t, "gate", vm.PIDs.Gate)
	checkReadOnly(t, "VMM", vm.PIDs.VMM)

	for _, c := range []struct {
		name              string
		pid               int
		group             string
		memory, cpu, pid2 string
	}{
		{"VMM", vm.PIDs.VMM, "vmsan-" + id, "469762048", "250000", "194"},
		{"gate", vm.PIDs.Gate, "vmsan-" + id + "-gate", "100663296", "100000", "64"},
	} {
		if got := groupsOf(t, c.pid); !strings.Contains(got, "/"+c.group+"\n") {
			t.Errorf("%s is in\n%s", c.name, got)
		}
		if got := limit(t, c.group, "memory.limit_in_bytes", "memory.max"); got != c.memory {
			t.Errorf("%s: memory is limited to %s, want %s", c.name, got, c.memory)
		}
		if got := limit(t, c.group, "cpu.cfs_quota_us", "cpu.max"); got != c.cpu {
			t.Errorf("%s: CPU is limited to %s, want %s", c.name, got, c.cpu)
		}
		if got := limit(t, c.group, "pids.max", "pids.max"); got != c.pid2 {
			t.Errorf("%s: processes are limited to %s, want %s", c.name, got, c.pid2)
		}
	}
	if got := groupsOf(t, vm.PIDs.Monitor); got != groupsOf(t, os.Getpid()) {
		t.Errorf("the monitor is in\n%s", got)
	}
}

// Case N7: walls that a user takes away are away, are said to be, and stay so.
func TestN7WithoutWalls(t *testing.T) {
	vmsan := testenv.RequireVmsan(t)
	id := vmsan.Create(t, "--no-seccomp", "--no-cgroup", "--no-pid-ns")
	for _, when := range []string{"after create", "after stop and start"} {
		vm := vmsan.Inspect(t, id)
		checkPrivileges(t, "VMM "+when, vm.PIDs.VMM, "0")
		checkPrivileges(t, "gate "+when, vm.PIDs.Gate, "2")
		if vm.Isolation.Seccomp || vm.Isolation.Cgroup || vm.Isolation.PIDNamespace {
			t.Errorf("%s: inspect says %+v", when, vm.Isolation)
		}
		if theirs, ours := namespaces(t, vm.PIDs.VMM), namespaces(t, os.Getpid()); theirs["pid"] != ours["pid"] || theirs["net"] == ours["net"] {
			t.Errorf("%s: the VMM has the namespaces %v, and we %v", when, theirs, ours)
		}
		for name, pid := range map[string]int{"VMM": vm.PIDs.VMM, "gate": vm.PIDs.Gate} {
			if got := groupsOf(t, pid); got != groupsOf(t, os.Getpid()) {
				t.Errorf("%s: %s is in\n%s", when, name, got)
			}
		}
		vmsan.Run(t, "stop", id)
		vmsan.Run(t, "start", id)
	}
}

// maxIdle is what monitor and gate of an idle sandbox may have together, in
// KiB of memory that is theirs alone or their share of what they have with
// others.
const maxIdle = 30 << 10

func TestIdleMemory(t *testing.T) {
	vmsan := testenv.RequireVmsan(t)
	pids := vmsan.Inspect(t, vmsan.Create(t)).PIDs
	monitor, gate := proportionalSize(t, pids.Monitor), proportionalSize(t, pids.Gate)
	if monitor+gate > testenv.MemoryFactor*maxIdle {
		t.Errorf("the monitor has %d KiB and the gate %d KiB, more than %d together", monitor, gate, maxIdle)
	}
}

// proportionalSize is a process's Pss in KiB (proc_pid_smaps_rollup(5)).
func proportionalSize(t *testing.T, pid int) int {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		var kib int
		if n, _ := fmt.Sscanf(line, "Pss: %d kB", &kib); n == 1 {
			return kib
		}
	}
	t.Fatalf("no Pss in %q", text)
	return 0
}
