package sandbox

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/vmsan/vmsan/api"
	"github.com/vmsan/vmsan/internal/cgroup"
	"github.com/vmsan/vmsan/internal/monitor"
	"github.com/vmsan/vmsan/internal/network"
	"github.com/vmsan/vmsan/internal/scratch"
	"github.com/vmsan/vmsan/internal/store"
)

// Leftover is something on the host that is there for nobody.
type Leftover struct {
	// What it is, in a few words, and of which sandbox, if that is known.
	What, VM string
	// Kept says why it is left alone: it cannot be proved to be this state
	// directory's and dead. Empty: Remove takes it away.
	Kept string

	remove func(context.Context) error
}

// Remove takes it away, if it is still there and nobody's.
func (l Leftover) Remove(ctx context.Context) error {
	if err := l.remove(ctx); err != nil {
		return fmt.Errorf("remove %s: %w", l.What, err)
	}
	return nil
}

// settleTime is how long what is ending right now may take to be gone: the
// kernel takes devices and groups apart on its own time.
const settleTime = 300 * time.Millisecond

// Leftovers looks for what dead sandboxes and commands that were killed have
// left on the host. It changes nothing. What could be found is returned beside
// the error about the rest.
func (s *Service) Leftovers(ctx context.Context) ([]Leftover, error) {
	first, err := s.findLeftovers(ctx)
	if len(first) == 0 {
		return nil, err
	}
	select {
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	case <-time.After(settleTime):
	}
	again, err := s.findLeftovers(ctx)
	return slices.DeleteFunc(again, func(l Leftover) bool { return !slices.ContainsFunc(first, l.same) }), err
}

// same tells whether two looks found the same. There may be less of a sandbox at
// the second.
func (l Leftover) same(other Leftover) bool {
	return l.VM == other.VM && (l.VM != "" || l.What == other.What)
}

func (s *Service) findLeftovers(ctx context.Context) (found []Leftover, err error) {
	ids, err := s.layout.IDs()
	if err != nil {
		return nil, err
	}
	all, err := s.traces()
	errs := []error{err}
	for _, id := range ids {
		if all[id] == nil {
			all[id] = &trace{}
		}
	}
	for _, id := range slices.Sorted(maps.Keys(all)) {
		look := s.strayTrace
		if slices.Contains(ids, id) {
			look = s.deadSandbox
		}
		l, err := look(id, all[id])
		if l != nil {
			l.VM = id
			found = append(found, *l)
		}
		errs = append(errs, err)
	}
	for _, look := range []func(context.Context) ([]Leftover, error){s.endlessMonitors, s.abandonedWork, s.forgottenSlots} {
		more, err := look(ctx)
		found, errs = append(found, more...), append(errs, err)
	}
	return found, errors.Join(errs...)
}

// trace is what there is on the host that is named after a sandbox, besides its
// files.
type trace struct {
	run     bool // a directory of sockets
	cgroups []string
	network *network.Found
}

func (t *trace) String() string {
	var parts []string
	if t.run {
		parts = append(parts, "a run directory")
	}
	for _, name := range t.cgroups {
		parts = append(parts, "cgroup "+name)
	}
	if t.network != nil && t.network.Link {
		parts = append(parts, "a network device")
	}
	if t.network != nil && t.network.Rules {
		parts = append(parts, "firewall rules")
	}
	return strings.Join(parts, ", ")
}

// cgroupPrefix begins the names of sandboxes' groups.
const cgroupPrefix = "vmsan-vm"

// traces are by the ids of sandboxes, whosever they are.
func (s *Service) traces() (map[string]*trace, error) {
	all := map[string]*trace{}
	of := func(id string) *trace {
		if all[id] == nil {
			all[id] = &trace{}
		}
		return all[id]
	}
	entries, err := os.ReadDir(s.layout.Run)
	errs := []error{ignoreNotExist(err)}
	for _, e := range entries {
		if store.ValidID(e.Name()) {
			of(e.Name()).run = true
		}
	}
	if os.Geteuid() != 0 {
		return all, errors.Join(errs...)
	}
	groups, err := cgroup.List(cgroupPrefix)
	errs = append(errs, err)
	for _, name := range groups {
		id := strings.TrimSuffix(strings.TrimPrefix(name, "vmsan-"), "-gate")
		if store.ValidID(id) && slices.Contains(monitor.Cgroups(id), name) {
			of(id).cgroups = append(of(id).cgroups, name)
		}
	}
	networks, err := network.Find()
	errs = append(errs, err)
	for i := range networks {
		of(networks[i].ID).network = &networks[i]
	}
	return all, errors.Join(errs...)
}

func ignoreNotExist(err error) error {
	if isNotExist(err) {
		return nil
	}
	return err
}

// deadSandbox is about a sandbox of ours. One whose lock is held lives, and so
// does all that is named after it.
func (s *Service) deadSandbox(id string, t *trace) (*Leftover, error) {
	r, err := s.layout.Load(id)
	if err != nil && !api.HasCode(err, api.ErrVMRecord) && !api.HasCode(err, api.ErrVMNotFound) {
		return nil, err
	}
	died := err == nil && unfinished(r)
	if !died && t.String() == "" {
		return nil, nil
	}
	lock, held, err := store.TryLock(s.layout.SandboxLock(id))
	if held || err != nil {
		return nil, ignoreNotExist(err) // it may be removed meanwhile
	}
	lock.Release()
	if died {
		return &Leftover{What: "a sandbox whose monitor died", remove: func(ctx context.Context) error {
			_, err := s.repaired(ctx, id)
			if api.HasCode(err, api.ErrVMNotFound) {
				err = nil // nobody had heard of it
			}
			return err
		}}, nil
	}
	return &Leftover{What: t.String(), remove: func(context.Context) error { return s.takeBackDead(id) }}, nil
}

// takeBackDead removes what a sandbox that does not run has on the host.
func (s *Service) takeBackDead(id string) error {
	lock, held, err := store.TryLock(s.layout.SandboxLock(id))
	if held || err != nil {
		return ignoreNotExist(err)
	}
	defer lock.Release()
	r, err := s.layout.Load(id)
	if err == nil {
		err = s.takeBack(r)
	}
	if api.HasCode(err, api.ErrVMRecord) || api.HasCode(err, api.ErrVMNotFound) {
		err = nil // what follows from the id will do
	}
	return errors.Join(err, s.takeBackByID(id))
}

// strayTrace is about what is named after a sandbox that this state directory
// does not have: it may be another's.
func (s *Service) strayTrace(id string, t *trace) (*Leftover, error) {
	stray := &Leftover{What: t.String(), remove: func(context.Context) error { return s.takeBackByID(id) }}
	var owner string
	if t.network != nil && t.network.Link {
		owner = t.network.Owner
	}
	switch {
	case t.run && answers(s.layout.ControlSocket(id)):
		stray.Kept = "its monitor lives, though its files are gone"
	case t.run, owner == s.layout.Run:
		// Ours by its place or its mark, and dead, for there are no files.
	case hasRunDirectory(id):
		return nil, nil
	case owner != "":
		stray.Kept = "it belongs to another state directory, whose sockets are in " + owner
	case t.network != nil && t.network.Link:
		stray.Kept = "another version of vmsan made it, for whichever state directory"
	case len(t.cgroups) > 0:
		return s.strayCgroups(stray, t.cgroups)
	}
	return stray, nil
}

// answers tells whether somebody listens on a socket.
func answers(socket string) bool {
	conn, err := net.DialTimeout("unix", socket, time.Second)
	if err != nil {
		return false
	}
	conn.Close()
	return true
}

// hasRunDirectory tells whether any state directory of root's has a sandbox id
// that runs: its run directory is made before all else, and removed after it.
func hasRunDirectory(id string) bool {
	found, err := filepath.Glob(filepath.Join("/run", "vmsan*", id))
	return err != nil || len(found) > 0
}

// strayCgroups decides about groups without anything else. Processes in them
// are ours if all run as users that only sandboxes of this state directory have.
func (s *Service) strayCgroups(stray *Leftover, names []string) (*Leftover, error) {
	var pids []int
	for _, name := range names {
		members, err := cgroup.Members(name)
		if err != nil {
			return nil, err
		}
		pids = append(pids, members...)
	}
	first, proved := monitor.Users(s.layout), 0
	for _, pid := range pids {
		uid, ok := userOf(pid)
		switch {
		case !ok: // it has ended
		case uid < first || uid >= first+2*store.Slots:
			stray.Kept = fmt.Sprintf("process %d in it runs as user %d, whom no sandbox of this state directory has", pid, uid)
		default:
			proved++
		}
	}
	if proved == 0 && stray.Kept == "" {
		stray.Kept = "nothing is in it, and nothing tells whose it was"
	}
	return stray, nil
}

// userOf is the effective user of a process: proc_pid_status(5).
func userOf(pid int) (uid uint32, ok bool) {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, false
	}
	for line := range strings.Lines(string(status)) {
		if list, found := strings.CutPrefix(line, "Uid:"); found {
			if fields := strings.Fields(list); len(fields) > 1 {
				n, err := strconv.ParseUint(fields[1], 10, 32)
				return uint32(n), err == nil
			}
		}
	}
	return 0, false
}

// abandonedWork finds the scratch directories of commands that were killed, and
// what is still mounted there.
func (s *Service) abandonedWork(context.Context) (found []Leftover, err error) {
	names, err := scratch.Dead(s.layout.Tmp())
	for _, name := range names {
		path := filepath.Join(s.layout.Tmp(), name)
		found = append(found, Leftover{What: "scratch directory " + path, remove: func(context.Context) error {
			return scratch.Remove(path)
		}})
	}
	return found, err
}

// forgottenSlots finds numbers of sandboxes that are gone.
func (s *Service) forgottenSlots(ctx context.Context) (found []Leftover, err error) {
	n, err := s.layout.Forgotten(ctx, false)
	if n > 0 {
		found = []Leftover{{What: fmt.Sprintf("numbers that no sandbox has: %d", n), remove: func(ctx context.Context) error {
			_, err := s.layout.Forgotten(ctx, true)
			return err
		}}}
	}
	return found, err
}
