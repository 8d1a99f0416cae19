package sandbox

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmsan/vmsan/api"
	"github.com/vmsan/vmsan/internal/cgroup"
	"github.com/vmsan/vmsan/internal/jail"
	"github.com/vmsan/vmsan/internal/monitor"
	"github.com/vmsan/vmsan/internal/network"
	"github.com/vmsan/vmsan/internal/policy"
	"github.com/vmsan/vmsan/internal/scratch"
	"github.com/vmsan/vmsan/internal/store"
	"github.com/vmsan/vmsan/internal/testenv"
)

func TestMain(m *testing.M) { os.Exit(testenv.Main(m)) }

// leftovers are as text: "WHAT", or "kept: WHAT: WHY". Those of other state
// directories on this machine, which other tests have, are left out.
func (s *Service) leftovers(t *testing.T, mine ...string) (list []string) {
	t.Helper()
	found, err := s.Leftovers(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range found {
		switch {
		case l.VM != "" && !slices.Contains(mine, l.VM):
		case l.Kept != "":
			list = append(list, "kept: "+l.What+": "+l.Kept)
		default:
			list = append(list, l.What)
		}
	}
	return list
}

// removeLeftovers removes those of the sandboxes mine, and what is of none.
func (s *Service) removeLeftovers(t *testing.T, mine ...string) {
	t.Helper()
	found, err := s.Leftovers(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range found {
		if l.Kept == "" && (l.VM == "" || slices.Contains(mine, l.VM)) {
			if err := l.Remove(t.Context()); err != nil {
				t.Error(err)
			}
		}
	}
}

func check(t *testing.T, got []string, want ...string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

// Tests of leftovers do not run beside others: who starts a process holds, for
// a moment, the locks of all.
func TestLeftoverSandbox(t *testing.T) {
	s := testService(t)
	check(t, s.leftovers(t))
	r := s.died(t, func(*store.Record) {})
	check(t, s.leftovers(t, r.ID), "a sandbox whose monitor died")
	lock, _, err := store.TryLock(s.layout.SandboxLock(r.ID))
	if err != nil {
		t.Fatal(err)
	}
	check(t, s.leftovers(t, r.ID)) // it lives
	lock.Release()
	s.removeLeftovers(t, r.ID)
	check(t, s.leftovers(t, r.ID))
	if got, err := s.layout.Load(r.ID); err != nil || got.Status != api.StatusStopped {
		t.Errorf("the sandbox is %+v, %v", got, err)
	}
	// Stopped, and something is there nevertheless.
	if err := os.MkdirAll(s.layout.JailRoot(r.ID), 0o700); err != nil {
		t.Fatal(err)
	}
	check(t, s.leftovers(t, r.ID), "a run directory")
	s.removeLeftovers(t, r.ID)
	check(t, s.leftovers(t, r.ID))
}

// TestLeftoverWithoutFiles is of a sandbox whose files somebody has deleted.
func TestLeftoverWithoutFiles(t *testing.T) {
	s := testService(t)
	r := s.died(t, func(*store.Record) {})
	if err := os.RemoveAll(s.layout.Sandbox(r.ID)); err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("unix", s.layout.ControlSocket(r.ID))
	if err != nil {
		t.Fatal(err)
	}
	const slots = "numbers that no sandbox has: 1"
	// It uses its number.
	check(t, s.leftovers(t, r.ID), "kept: a run directory: its monitor lives, though its files are gone")
	s.removeLeftovers(t, r.ID)
	if _, err := os.Stat(s.layout.SandboxRun(r.ID)); err != nil {
		t.Errorf("what is kept: %v", err)
	}
	check(t, s.leftovers(t, r.ID), "kept: a run directory: its monitor lives, though its files are gone")
	if err := listener.Close(); err != nil {
		t.Fatal(err)
	}
	check(t, s.leftovers(t, r.ID), "a run directory")
	s.removeLeftovers(t, r.ID)
	check(t, s.leftovers(t, r.ID), slots)
	s.removeLeftovers(t, r.ID)
	check(t, s.leftovers(t, r.ID))
}

// TestLeftoverSlot: a number counts as forgotten only if nobody is removing its
// sandbox, and if it is certain that no sandbox has it.
func TestLeftoverSlot(t *testing.T) {
	s := testService(t)
	first, second := s.died(t, func(*store.Record) {}), s.died(t, func(*store.Record) {})
	s.removeLeftovers(t, first.ID, second.ID)
	grave, err := scratch.New(s.layout.Tmp(), "removed")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(s.layout.Sandbox(first.ID), grave.Join(first.ID)); err != nil {
		t.Fatal(err)
	}
	check(t, s.leftovers(t, first.ID))
	if err := grave.Close(); err != nil {
		t.Fatal(err)
	}
	check(t, s.leftovers(t, first.ID), "numbers that no sandbox has: 1")
	record, err := os.ReadFile(s.layout.Record(second.ID))
	if err != nil {
		t.Fatal(err)
	}
	write := func(data []byte) {
		if err := os.WriteFile(s.layout.Record(second.ID), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write([]byte("{"))
	check(t, s.leftovers(t, second.ID))
	write(record)
	s.removeLeftovers(t, second.ID)
	check(t, s.leftovers(t, second.ID))
	third := &store.Record{Status: api.StatusStopped}
	lock, err := s.layout.Allocate(t.Context(), third, func(int) (bool, error) { return true, nil })
	if err != nil {
		t.Fatal(err)
	}
	lock.Release()
	if third.Slot != first.Slot {
		t.Errorf("the next has the number %d, not %d", third.Slot, first.Slot)
	}
}

// TestLeftoverWork is of a command that was killed while something was mounted
// in its scratch directory.
func TestLeftoverWork(t *testing.T) {
	testenv.RequireRoot(t)
	s := testService(t)
	alive, err := scratch.New(s.layout.Tmp(), "alive")
	if err != nil {
		t.Fatal(err)
	}
	defer alive.Close()
	dead := filepath.Join(s.layout.Tmp(), "debian-1.scratch")
	inside := filepath.Join(dead, "chroot", "proc")
	if err := os.MkdirAll(inside, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("none", inside, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(inside, "file"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	check(t, s.leftovers(t), "scratch directory "+dead)
	s.removeLeftovers(t)
	check(t, s.leftovers(t))
	if _, err := os.Stat(alive.Path); err != nil {
		t.Error(err)
	}
}

// strange is an id that no sandbox of the test's has.
func strange(n int) string { return fmt.Sprintf("vm%05d%05d", os.Getpid()%100000, n) }

func makeGroup(t *testing.T, name string) *cgroup.Group {
	t.Helper()
	g, err := cgroup.Create(name, cgroup.Limits{CPUs: 1, Memory: 64 << 20, PIDs: 8})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := cgroup.Remove(name); err != nil {
			t.Error(err)
		}
	})
	return g
}

// TestLeftoverCgroups has groups of sandboxes that this state directory does not
// have: an empty one, one with a process of its users, and one with another's.
func TestLeftoverCgroups(t *testing.T) {
	testenv.RequireRoot(t)
	s := testService(t)
	empty, ours, theirs := strange(1), strange(2), strange(3)
	makeGroup(t, monitor.Cgroups(empty)[1])
	start := func(id string, uid uint32) *jail.Process {
		p, err := jail.Start(jail.Spec{
			Path: "/bin/sleep", Args: []string{"600"}, Cgroup: makeGroup(t, monitor.Cgroups(id)[0]), User: &jail.User{UID: uid, GID: uid},
		})
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	orphan, stranger := start(ours, monitor.Users(s.layout)+7), start(theirs, 65534)
	all := []string{empty, ours, theirs}
	unknown := "kept: cgroup vmsan-" + empty + "-gate: nothing is in it, and nothing tells whose it was"
	kept := fmt.Sprintf("kept: cgroup vmsan-%s: process %d in it runs as user 65534, whom no sandbox of this state directory has", theirs, stranger.PID())
	check(t, s.leftovers(t, all...), unknown, "cgroup vmsan-"+ours, kept)
	s.removeLeftovers(t, all...)
	<-orphan.Done()
	check(t, s.leftovers(t, all...), unknown, kept)
	select {
	case <-stranger.Done():
		t.Error("the stranger was killed")
	default:
	}
	if err := stranger.Kill(); err != nil {
		t.Error(err)
	}
	<-stranger.Done()
	// Wherever a sandbox runs there is a run directory: these may.
	for _, id := range []string{empty, theirs} {
		run := filepath.Join("/run", "vmsan-test-"+id, id)
		if err := os.MkdirAll(run, 0o700); err != nil {
			t.Fatal(err)
		}
		defer os.RemoveAll(filepath.Dir(run))
	}
	check(t, s.leftovers(t, all...))
}

// TestLeftoverCgroupOfOurs has one of a sandbox that is there and does not run.
func TestLeftoverCgroupOfOurs(t *testing.T) {
	testenv.RequireRoot(t)
	s := testService(t)
	r := s.died(t, func(*store.Record) {})
	s.removeLeftovers(t, r.ID)
	g := makeGroup(t, monitor.Cgroups(r.ID)[0])
	check(t, s.leftovers(t, r.ID), "cgroup "+g.Name())
	s.removeLeftovers(t, r.ID)
	check(t, s.leftovers(t, r.ID))
	if cgroup.Exists(g.Name()) {
		t.Error("the group is left")
	}
}

// TestLeftoverNetworks holds networks open as a process would that nobody
// knows any more.
func TestLeftoverNetworks(t *testing.T) {
	testenv.RequireRoot(t)
	testenv.Lab(t)
	s := testService(t)
	admitted := policy.Policy{Mode: policy.Custom, AllowedCIDRs: []policy.CIDR{{Prefix: netip.MustParsePrefix("10.20.0.1/32")}}}
	for i, c := range []struct{ owner, want string }{
		{s.layout.Run, "a network device, firewall rules"},
		{"/run/vmsan-other", "kept: a network device, firewall rules: it belongs to another state directory, whose sockets are in /run/vmsan-other"},
		{"", "kept: a network device, firewall rules: another version of vmsan made it, for whichever state directory"},
	} {
		id := strange(10 + i)
		n, err := network.Create(t.Context(), network.Config{
			ID: id, Slot: i, Pool: netip.MustParsePrefix("44.128.0.0/16"), Policy: admitted, Owner: c.owner,
		})
		if err != nil {
			t.Fatal(err)
		}
		check(t, s.leftovers(t, id), c.want)
		s.removeLeftovers(t, id)
		if strings.HasPrefix(c.want, "kept") {
			check(t, s.leftovers(t, id), c.want)
			if err := network.CleanUp(id); err != nil {
				t.Error(err)
			}
		}
		check(t, s.leftovers(t, id))
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	}
	// A sandbox that is there, and stopped; and the same while it runs.
	r := s.died(t, func(r *store.Record) { r.Spec.Network, r.Spec.Pool = "nat", netip.MustParsePrefix("44.128.0.0/16") })
	s.removeLeftovers(t, r.ID)
	n, err := network.Create(t.Context(), network.Config{ID: r.ID, Slot: r.Slot, Pool: r.Spec.Pool, Owner: s.layout.Run})
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	lock, _, err := store.TryLock(s.layout.SandboxLock(r.ID))
	if err != nil {
		t.Fatal(err)
	}
	check(t, s.leftovers(t, r.ID))
	lock.Release()
	check(t, s.leftovers(t, r.ID), "a network device")
	s.removeLeftovers(t, r.ID)
	check(t, s.leftovers(t, r.ID))
}

// TestLeftoverSettles has something there that is about to go: that is no
// leftover.
func TestLeftoverSettles(t *testing.T) {
	s := testService(t)
	r := s.died(t, func(r *store.Record) { r.Status = api.StatusStopped })
	gone := make(chan error)
	go func() {
		time.Sleep(settleTime / 10)
		gone <- os.RemoveAll(s.layout.SandboxRun(r.ID))
	}()
	check(t, s.leftovers(t, r.ID))
	if err := <-gone; err != nil {
		t.Error(err)
	}
}
