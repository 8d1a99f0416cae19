package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vmsan/vmsan/api"
	"github.com/vmsan/vmsan/internal/store"
)

// TestKills has processes killed at random, commands, monitors, gates and VMMs,
// while many things are done at once: nothing of them is left, all that is there
// can be read, used and removed, and who was not hit has noticed nothing.
func TestKills(t *testing.T) {
	t.Parallel()
	kills, workers := 24, 3
	if os.Getenv(faultsVar) != "" {
		kills = 500
	}
	h := newHost(t)
	h.must("create", "--name", "bystander")
	h.startPython("bystander", counter, "/root/process")
	before, digest := h.count("bystander")
	started := h.inspect("bystander").StartedAt
	h.must("snapshot", "create", "bystander", "--name", "kept")

	load := &load{host: h, stop: make(chan struct{}), running: map[*exec.Cmd]bool{}, done: map[string]int{}}
	var all sync.WaitGroup
	for i := range workers {
		all.Go(func() { load.work(fmt.Sprintf("w%d", i)) })
	}
	killed := load.kill(kills)
	close(load.stop)
	all.Wait()
	t.Logf("killed %v during %v", killed, load.done)

	if out, err := h.vmsan("gc"); err != nil {
		t.Errorf("gc: %s, %v", out, err)
	}
	var left api.Collection
	if err := json.Unmarshal([]byte(h.must("gc", "--dry-run", "--json")), &left); err != nil {
		t.Fatal(err)
	}
	if len(left.Removed)+len(left.Kept)+len(left.Failed) > 0 {
		t.Errorf("gc leaves %+v", left)
	}
	if n, same := h.count("bystander"); n <= before || same != digest || !h.inspect("bystander").StartedAt.Equal(*started) {
		t.Errorf("the one that was never hit counts %d after %d, and was started at %s", n, before, h.inspect("bystander").StartedAt)
	}
	records, broken, err := h.layout.List()
	if err != nil || len(broken) > 0 {
		t.Errorf("records that cannot be read: %v, %v", broken, err)
	}
	for _, r := range records {
		if !r.Internal && !r.Ephemeral { // those end with their command
			h.checkUsable("after the kills", r.ID)
		}
	}
	for _, s := range h.snapshots() {
		h.must("snapshot", "inspect", s.ID, "--verify")
		h.must("snapshot", "rm", s.ID)
	}
}

// load is what is being done while processes are killed.
type load struct {
	*host
	stop chan struct{}

	mu      sync.Mutex
	running map[*exec.Cmd]bool
	done    map[string]int // how often each command ended well
}

// work does this and that to sandboxes whose names begin with name.
func (l *load) work(name string) {
	fork := name + "-fork"
	deeds := [][]string{
		{"create", "--name", name, "--network-policy", "allow-all"}, {"create", "--name", name, "--snapshot", "kept"},
		{"exec", "--no-stdin", name, "sh", "-c", "date >/root/date; sync"}, {"exec", "--no-stdin", name, "sleep", "0.3"},
		{"snapshot", "create", name, "--name", "of-" + name}, {"snapshot", "rm", "of-" + name}, {"restore", name, "of-" + name},
		{"fork", name, "--name", fork}, {"rm", "-f", fork + "-1"}, {"run", "--", "true"},
		{"network", name, "--network-policy", "deny-all"}, {"pause", name}, {"pause", "--reclaim", name}, {"resume", name},
		{"stop", "--timeout", "1s", name}, {"start", name}, {"rm", "-f", name},
	}
	for {
		select {
		case <-l.stop:
			return
		default:
			l.do(deeds[rand.IntN(len(deeds))])
		}
	}
}

// do runs a command, which may well fail.
func (l *load) do(args []string) {
	cmd := l.command(context.Background(), args...)
	l.mu.Lock()
	err := cmd.Start()
	if err == nil {
		l.running[cmd] = true
	}
	l.mu.Unlock()
	if err != nil {
		l.t.Error(err)
		return
	}
	hangs := time.AfterFunc(patience, func() {
		l.t.Errorf("vmsan %s hangs", strings.Join(args, " "))
		cmd.Process.Kill()
	})
	err = cmd.Wait()
	hangs.Stop()
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.running, cmd)
	if err == nil {
		l.done[args[0]]++
	}
}

// kill kills so many processes, and returns how many of each kind.
func (l *load) kill(kills int) map[string]int {
	killed := map[string]int{}
	for n := 0; n < kills; {
		time.Sleep(time.Duration(50+rand.IntN(400)) * time.Millisecond)
		kind := []string{"command", "monitor", "gate", "VMM"}[rand.IntN(4)]
		if l.killOne(kind) {
			killed[kind]++
			n++
		}
	}
	return killed
}

// killOne tells whether there was one of that kind.
func (l *load) killOne(kind string) bool {
	if kind == "command" {
		l.mu.Lock()
		defer l.mu.Unlock()
		for cmd := range l.running {
			return cmd.Process.Kill() == nil
		}
		return false
	}
	records, _, err := l.layout.List()
	if err != nil || len(records) == 0 {
		return false
	}
	r := records[rand.IntN(len(records))]
	p := map[string]store.Process{"monitor": r.Host.Monitor, "gate": r.Host.Gate, "VMM": r.Host.VMM}[kind]
	return r.Name != "bystander" && p.PID > 0 && p.Kill() == nil
}
