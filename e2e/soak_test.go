package e2e

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// A soak lasts for soakTime where load is asked for, and else so many rounds.
const (
	soakTime   = 30 * time.Minute
	soakRounds = 4
	// soakWarm is for what is made once, such as the tables of the host.
	soakWarm = 2
)

// reading is something of the host that must not grow with the number of
// sandboxes that there were. What other programs change as well is judged only
// where the machine is the test's own.
type reading struct {
	name   string
	slack  int64 // by which it may grow
	scale  int64 // to print it by
	unit   string
	shared bool
	read   func(h *host) (int64, error)
}

var readings = []reading{
	{"files", 256, 1, "", true, func(*host) (int64, error) { return field("/proc/sys/fs/file-nr", "", 0) }},
	{"kernel's memory", 32 << 10, 1 << 10, "MiB", true, kernelMemory},
	{"shared memory", 8 << 10, 1 << 10, "MiB", true, func(*host) (int64, error) { return field("/proc/meminfo", "\nShmem:", 0) }},
	{"processes' memory", 64 << 10, 1 << 10, "MiB", true, func(*host) (int64, error) { return field("/proc/meminfo", "\nAnonPages:", 0) }},
	{"control groups", 8, 1, "", true, func(*host) (int64, error) { return field("/proc/cgroups", "\nmemory", 1) }},
	{"network namespaces", 16, 1, "", true, func(*host) (int64, error) { return field("/proc/slabinfo", "\nnet_namespace", 0) }},
	// The journal of events has 2 MiB at most.
	{"disk", 3 << 20, 1 << 10, "KiB", false, func(h *host) (int64, error) { return onDisk(h.layout.Dir, h.layout.Run) }},
	{"flows", 256, 1, "", false, func(*host) (int64, error) { return knownFlows() }},
	{"lines of nft", 0, 1, "", false, func(*host) (int64, error) { return lines("nft", "--stateless", "list", "ruleset") }},
	{"links", 0, 1, "", false, func(*host) (int64, error) { return lines("ip", "-oneline", "link") }},
	{"mounts", 0, 1, "", false, func(*host) (int64, error) { return lines("cat", "/proc/self/mountinfo") }},
}

// kernelMemory is what the kernel cannot give back, in KiB.
func kernelMemory(*host) (sum int64, err error) {
	for _, name := range []string{"SUnreclaim", "KernelStack", "PageTables", "Percpu"} {
		n, err := field("/proc/meminfo", "\n"+name+":", 0)
		if err != nil {
			return 0, err
		}
		sum += n
	}
	return sum, nil
}

// field is the number in a column of what stands in a file after a mark.
func field(path, mark string, column int) (int64, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	_, after, found := strings.Cut(string(text), mark)
	fields := strings.Fields(after)
	if !found || len(fields) <= column {
		return 0, fmt.Errorf("%s has no %q", path, mark)
	}
	return strconv.ParseInt(fields[column], 10, 64)
}

func onDisk(dirs ...string) (sum int64, err error) {
	for _, dir := range dirs {
		err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
			if err != nil || !d.IsDir() {
				return err
			}
			n, err := allocated(path)
			sum += n
			return err
		})
		if err != nil {
			return 0, err
		}
	}
	return sum, nil
}

func lines(program string, args ...string) (int64, error) {
	out, err := exec.Command(program, args...).Output()
	return int64(bytes.Count(out, []byte("\n"))), err
}

// TestSoak makes one sandbox after the other, uses it and removes it. What the
// host has to pay for stays as it is.
func TestSoak(t *testing.T) {
	h := newHost(t)
	long := os.Getenv(loadVar) != ""
	round := func() {
		h.must("create", "--name", "round", "--network-policy", "allow-all")
		h.must("exec", "--no-stdin", "round", "sh", "-c", "echo from the guest >/root/file; cat /root/file; getent hosts example.com; true")
		h.must("rm", "-f", "round")
	}
	take := func() []int64 {
		t.Helper()
		if long {
			// Pages of files that anybody may use next keep the control group of
			// whoever read them first, until the kernel wants the memory.
			if err := os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0); err != nil {
				t.Fatal(err)
			}
		}
		var values []int64
		for _, r := range readings {
			if r.shared && !long {
				values = append(values, 0)
				continue
			}
			n, err := r.read(h)
			if err != nil {
				t.Fatalf("read %s: %v", r.name, err)
			}
			values = append(values, n)
		}
		return values
	}
	for range soakWarm {
		round()
	}
	first, began, rounds := take(), time.Now(), 0
	for ; rounds < soakRounds || long && time.Since(began) < soakTime; rounds++ {
		round()
		if rounds%100 == 99 {
			t.Logf("after %d rounds: %v", rounds+1, take())
		}
	}
	grown := func(values []int64) (some bool) {
		for i, r := range readings {
			some = some || values[i]-first[i] > r.slack
		}
		return some
	}
	last := take()
	// The kernel takes its time with what is left of control groups and
	// namespaces.
	for deadline := time.Now().Add(time.Minute); grown(last) && time.Now().Before(deadline); last = take() {
		time.Sleep(time.Second)
	}
	for i, r := range readings {
		if r.shared && !long {
			continue
		}
		t.Logf("after %d rounds in %s: %s %d -> %d %s", rounds, time.Since(began).Round(time.Second), r.name, first[i]/r.scale, last[i]/r.scale, r.unit)
		if more := last[i] - first[i]; more > r.slack {
			t.Errorf("%s grew by %d %s", r.name, more/r.scale, r.unit)
		}
	}
}
