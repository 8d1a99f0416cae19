package e2e

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/vmsan/vmsan/internal/gate/logfile"
	"github.com/vmsan/vmsan/internal/network/firewall"
	"github.com/vmsan/vmsan/internal/network/netns"
	"github.com/vmsan/vmsan/internal/testenv"
)

// figure is something of a sandbox that the host has to pay for.
type figure struct {
	name  string
	bound int64
	scale int64 // to print it by
	unit  string
	read  func(s *sample) (int64, error)
}

// sample is where figures are read from.
type sample struct {
	monitor, gate, vmm, dir, run string
	ns                           *netns.Namespace // nil without a network
}

// figures are all of them. What the kernel holds for processes is bounded by
// their control groups; here it is seen to be.
var figures = []figure{
	{"monitor's memory", testenv.MemoryFactor * 64 << 20, 1 << 20, "MiB", func(s *sample) (int64, error) { return resident(s.monitor) }},
	{"gate's memory", testenv.MemoryFactor * 96 << 20, 1 << 20, "MiB", func(s *sample) (int64, error) { return resident(s.gate) }},
	{"VMM's memory", (hostileMemory + 192) << 20, 1 << 20, "MiB", func(s *sample) (int64, error) { return resident(s.vmm) }},
	{"monitor's files", 64, 1, "", func(s *sample) (int64, error) { return openFiles(s.monitor) }},
	{"gate's files", 4096, 1, "", func(s *sample) (int64, error) { return openFiles(s.gate) }},
	{"VMM's files", 128, 1, "", func(s *sample) (int64, error) { return openFiles(s.vmm) }},
	{"console.log", logfile.Max + logfile.Keep, 1 << 10, "KiB", func(s *sample) (int64, error) { return fileSize(s.dir + "/console.log") }},
	{"network.log", logfile.Max + logfile.Keep, 1 << 10, "KiB", func(s *sample) (int64, error) { return fileSize(s.dir + "/network.log") }},
	{"monitor.log", 2 << 20, 1 << 10, "KiB", func(s *sample) (int64, error) { return fileSize(s.dir + "/monitor.log") }},
	{"disk", hostileDisk + 16<<20, 1 << 20, "MiB", func(s *sample) (int64, error) { return allocated(s.dir) }},
	{"run directory", 1 << 20, 1 << 10, "KiB", func(s *sample) (int64, error) { return allocated(s.run) }},
	{"its flows", firewall.MaxFlows + flowsOfGate, 1, "", func(s *sample) (int64, error) { return s.inside(knownFlows) }},
	{"host's flows", firewall.MaxFlows + flowsOfOthers, 1, "", func(*sample) (int64, error) { return knownFlows() }},
	{"fragments", 8 << 20, 1 << 10, "KiB", func(s *sample) (int64, error) { return s.inside(fragmentMemory) }},
}

// What others than the guest have of flows: its gate has connections of its
// own, and the host's resolver is asked for each of the gate's questions.
const (
	flowsOfGate   = 2000
	flowsOfOthers = 10_000
)

// maxima are the largest values that figures had.
type maxima []int64

func (m maxima) excess() (text []string) {
	for i, f := range figures {
		if m[i] > f.bound {
			text = append(text, fmt.Sprintf("%s: %d %s, bounded by %d", f.name, m[i]/f.scale, f.unit, f.bound/f.scale))
		}
	}
	return text
}

func (m maxima) String() string {
	var text []string
	for i, f := range figures {
		if m[i] > 0 {
			text = append(text, strings.TrimSpace(fmt.Sprintf("%s %d %s", f.name, m[i]/f.scale, f.unit)))
		}
	}
	return strings.Join(text, ", ")
}

// watcher looks at the figures of a sandbox again and again.
type watcher struct {
	host *host
	id   string
	done chan struct{}
	wait sync.WaitGroup

	mu   sync.Mutex
	most maxima
}

// watchFigures looks at the figures of a sandbox until it is stopped.
func (h *host) watchFigures(name string) *watcher {
	h.t.Helper()
	w := &watcher{host: h, id: h.idOf(name), done: make(chan struct{}), most: make(maxima, len(figures))}
	if err := h.look(w.id, w.most); err != nil {
		h.t.Errorf("figures of %s: %v", name, err)
	}
	w.wait.Go(func() {
		for {
			select {
			case <-w.done:
				return
			case <-time.After(100 * time.Millisecond):
				w.look()
			}
		}
	})
	return w
}

func (w *watcher) look() {
	w.mu.Lock()
	defer w.mu.Unlock()
	// It may end while it is looked at.
	_ = w.host.look(w.id, w.most)
}

// next returns the most that there was, and begins anew.
func (w *watcher) next() maxima {
	w.look()
	w.mu.Lock()
	defer w.mu.Unlock()
	most := w.most
	w.most = make(maxima, len(figures))
	return most
}

func (w *watcher) stop() {
	close(w.done)
	w.wait.Wait()
}

// look raises what has grown.
func (h *host) look(id string, most maxima) error {
	record, err := h.layout.Load(id)
	if err != nil {
		return err
	}
	process := func(pid int) string { return fmt.Sprintf("/proc/%d", pid) }
	s := &sample{
		monitor: process(record.Host.Monitor.PID), gate: process(record.Host.Gate.PID), vmm: process(record.Host.VMM.PID),
		dir: h.layout.Sandbox(id), run: filepath.Join(h.layout.Run, id),
	}
	if record.Spec.Networked() && record.Host.Gate.PID > 0 {
		if s.ns, err = netns.Of(record.Host.Gate.PID); err != nil {
			return err
		}
		defer s.ns.Close()
	}
	for i, f := range figures {
		value, err := f.read(s)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ESRCH) {
			continue // of a process that has just ended
		}
		if err != nil {
			return fmt.Errorf("%s: %w", f.name, err)
		}
		most[i] = max(most[i], value)
	}
	return nil
}

// inside reads a figure in the sandbox's network namespace.
func (s *sample) inside(read func() (int64, error)) (value int64, err error) {
	if s.ns == nil {
		return 0, nil
	}
	err = s.ns.Do(func() (err error) {
		value, err = read()
		return err
	})
	return value, err
}

func resident(process string) (int64, error) {
	text, err := os.ReadFile(process + "/status")
	if err != nil {
		return 0, err
	}
	_, after, _ := strings.Cut(string(text), "\nVmRSS:")
	fields := strings.Fields(after)
	if len(fields) == 0 {
		return 0, nil // it is ending
	}
	kibibytes, err := strconv.ParseInt(fields[0], 10, 64)
	return kibibytes << 10, err
}

func openFiles(process string) (int64, error) {
	entries, err := os.ReadDir(process + "/fd")
	return int64(len(entries)), err
}

func fileSize(path string) (int64, error) {
	info, err := os.Stat(path)
	if os.IsNotExist(err) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	return info.Size(), nil
}

// allocated is what the files in a directory take on the host's disk.
func allocated(dir string) (sum int64, err error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return 0, err
	}
	for _, e := range entries {
		info, err := e.Info()
		if err != nil {
			continue // a file of the moment
		}
		sum += info.Sys().(*syscall.Stat_t).Blocks * 512
	}
	return sum, nil
}

func knownFlows() (int64, error) {
	text, err := os.ReadFile("/proc/sys/net/netfilter/nf_conntrack_count")
	if err != nil {
		return 0, err
	}
	return strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
}

// fragmentMemory is what the kernel holds of packets that are not whole yet.
func fragmentMemory() (bytes int64, err error) {
	text, err := os.ReadFile("/proc/thread-self/net/sockstat")
	if err != nil {
		return 0, err
	}
	_, after, _ := strings.Cut(string(text), "\nFRAG: ")
	var inUse int64
	_, err = fmt.Sscanf(after, "inuse %d memory %d", &inUse, &bytes)
	return bytes, err
}
