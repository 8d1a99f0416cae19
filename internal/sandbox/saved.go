package sandbox

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/google/renameio/v2"

	"github.com/vmsan/vmsan/api"
	"github.com/vmsan/vmsan/internal/agent/binary"
	"github.com/vmsan/vmsan/internal/fault"
	"github.com/vmsan/vmsan/internal/jail"
	"github.com/vmsan/vmsan/internal/kernel"
	"github.com/vmsan/vmsan/internal/monitor/control"
	"github.com/vmsan/vmsan/internal/network"
	"github.com/vmsan/vmsan/internal/scratch"
	"github.com/vmsan/vmsan/internal/snapshot"
	"github.com/vmsan/vmsan/internal/store"
	"github.com/vmsan/vmsan/internal/vmm"
)

// What saves, seals and restores machines is here; snapshots, templates,
// forks and pauses are made of it.

// streamFile is what a driver that seals saves to.
const streamFile = "stream"

// sealUID is the host's user of the VMM that seals: below all sandboxes'.
const sealUID = probeUID - 1

// saveInto saves the sandbox r into a draft: memory, state and a copy of its
// disk, as how says.
func (s *Service) saveInto(ctx context.Context, r *store.Record, d *snapshot.Draft, how control.SaveRequest) (control.SaveAnswer, error) {
	to := how
	to.Overlay = d.Path(snapshot.OverlayFile)
	return s.saveTo(ctx, r, to, d.Join(streamFile), vmmFiles{d.Path(snapshot.MemoryFile), d.Path(snapshot.StateFile)})
}

// vmmFiles are the paths of a machine at rest.
type vmmFiles struct{ memory, state string }

// saveTo has the machine of r saved as to says, and sealed if its driver needs
// that; stream is a path for what is in between.
func (s *Service) saveTo(ctx context.Context, r *store.Record, to control.SaveRequest, stream string, files vmmFiles) (
	answer control.SaveAnswer, err error) {
	driver, err := Driver(s.layout, r.Spec)
	if err != nil {
		return answer, err
	}
	features := driver.Features()
	if !features.Snapshots {
		return answer, api.Errorf(api.ErrUnsupported, "the driver %s cannot save machines", features.Name)
	}
	to.State, to.Memory = files.state, files.memory
	if features.Seals {
		to.State, to.Memory = stream, ""
	}
	answer, err = control.Dial(s.layout.ControlSocket(r.ID)).Save(ctx, to)
	err = fault.After("save: saved", err)
	if errors.Is(err, control.ErrGone) {
		err = died(r.ID)
	}
	if err != nil || !features.Seals {
		return answer, err
	}
	if err := fault.After("save: sealed", s.seal(ctx, driver, r, stream, files)); err != nil {
		return answer, scratch.Explain(fmt.Errorf("seal: %w", err))
	}
	return answer, os.Remove(stream)
}

// seal turns the stream of a saved machine into files that many can be
// restored from.
func (s *Service) seal(ctx context.Context, driver vmm.Driver, r *store.Record, stream string, files vmmFiles) error {
	from, err := os.Open(stream)
	if err != nil {
		return err
	}
	defer from.Close()
	memory, err := os.OpenFile(files.memory, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer memory.Close()
	state, err := os.OpenFile(files.state, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer state.Close()
	shut, release, err := helperJail(filepath.Dir(stream), "seal-", sealUID)
	if err != nil {
		return err
	}
	defer release()
	return driver.Seal(ctx, s.machineSpec(r, shut), vmm.Saved{State: from}, vmm.Saved{Memory: memory, State: state})
}

// machineSpec is the machine of r, without the files of its devices.
func (s *Service) machineSpec(r *store.Record, shut vmm.Jail) vmm.Spec {
	spec := vmm.Spec{
		ID: r.ID, VCPUs: r.Spec.VCPUs, MemoryMiB: r.Spec.MemoryMiB, Accelerator: vmm.Accelerator(r.Spec.Accelerator),
		Kernel: kernel.VmlinuxPath(s.layout, r.Spec.Kernel), Initramfs: kernel.InitramfsPath(s.layout, r.Spec.Kernel),
		Disks: []vmm.Disk{{Name: "image", ReadOnly: true}, {Name: "overlay"}},
		Jail:  shut,
	}
	if r.Spec.HasNIC() {
		spec.NIC = &vmm.NIC{MAC: network.GuestMAC}
	}
	return spec
}

// helperJail shuts in a VMM that is no sandbox's, on a directory made in dir.
// release removes that.
func helperJail(dir, prefix string, uid uint32) (shut vmm.Jail, release func() error, err error) {
	if dir, err = os.MkdirTemp(dir, prefix); err != nil {
		return shut, nil, err
	}
	release = func() error { return os.RemoveAll(dir) }
	if os.Geteuid() != 0 {
		return shut, release, nil
	}
	root := filepath.Join(dir, "root")
	if err := os.Mkdir(root, 0o700); err != nil {
		return shut, nil, errors.Join(err, release())
	}
	return vmm.Jail{User: &jail.User{UID: uid, GID: uid}, Root: root}, release, nil
}

// here is what a saved machine depends on, on this host.
func (s *Service) here(ctx context.Context, spec store.Spec) (snapshot.Host, error) {
	driver, err := Driver(s.layout, spec)
	if err != nil {
		return snapshot.Host{}, err
	}
	version, err := s.vmmVersion(ctx, driver)
	if err != nil {
		return snapshot.Host{}, err
	}
	cpu, err := driver.CPU(vmm.Accelerator(spec.Accelerator))
	if err != nil {
		return snapshot.Host{}, err
	}
	return snapshot.Host{
		Driver: spec.Driver, VMMVersion: version, Accelerator: spec.Accelerator,
		CPU: cpu.Model, TSCkHz: cpu.TSCkHz, Kernel: spec.Kernel, Agent: binary.Digest(),
	}, nil
}

// knownVersion is the version of a VMM's program that has not changed since.
type knownVersion struct {
	Path    string `json:"path"`
	Size    int64  `json:"size"`
	Time    int64  `json:"mtime_ns"`
	Version string `json:"version"`
}

// vmmVersion asks the VMM for its version once for as long as its program is
// the same: starting it takes longer than restoring a machine.
func (s *Service) vmmVersion(ctx context.Context, driver vmm.Driver) (string, error) {
	name := driver.Features().Name
	current, err := programOf(driver)
	if err != nil {
		return driver.Version(ctx)
	}
	cache := filepath.Join(s.layout.Run, "version-"+name)
	var known knownVersion
	if raw, err := os.ReadFile(cache); err == nil && json.Unmarshal(raw, &known) == nil {
		if current.Version = known.Version; current == known {
			return known.Version, nil
		}
	}
	if current.Version, err = driver.Version(ctx); err != nil {
		return "", err
	}
	raw, err := json.Marshal(current)
	if err == nil {
		err = renameio.WriteFile(cache, raw, 0o600)
	}
	if err != nil {
		s.log.Warn("remember the VMM's version", "error", err)
	}
	return current.Version, nil
}

// programOf describes a driver's program as it is now.
func programOf(driver vmm.Driver) (known knownVersion, err error) {
	named, ok := driver.(interface{ Program() string })
	if !ok {
		return known, errors.New("the driver has no program of its own")
	}
	path, err := exec.LookPath(named.Program())
	if err != nil {
		return known, err
	}
	info, err := os.Stat(path)
	if err != nil {
		return known, err
	}
	return knownVersion{Path: path, Size: info.Size(), Time: info.ModTime().UnixNano()}, nil
}

// verifiedFile says in a snapshot's directory that its files had the digests
// of its manifest, and what they looked like then.
const verifiedFile = "verified"

// verify compares digests, unless nothing has changed since it last did.
func verify(ctx context.Context, all snapshot.Store, id string) error {
	look, err := looks(filepath.Join(all.Dir, id))
	if err != nil {
		return api.Errorf(api.ErrSnapshotCorrupt, "snapshot %s: %w", id, err)
	}
	path := filepath.Join(all.Dir, id, verifiedFile)
	if known, err := os.ReadFile(path); err == nil && string(known) == look {
		return nil
	}
	if err := all.Verify(ctx, id); err != nil {
		return err
	}
	return os.WriteFile(path, []byte(look), 0o600)
}

// trust notes that the snapshot id, which was just made, is as it should be.
func (s *Service) trust(all snapshot.Store, id string) {
	look, err := looks(filepath.Join(all.Dir, id))
	if err == nil {
		err = os.WriteFile(filepath.Join(all.Dir, id, verifiedFile), []byte(look), 0o600)
	}
	if err != nil {
		s.log.Warn("note that a snapshot is whole", "snapshot", id, "error", err)
	}
}

// looks describes a snapshot's files so far as a change of them shows.
func looks(dir string) (string, error) {
	var text strings.Builder
	for _, name := range []string{snapshot.MemoryFile, snapshot.StateFile, snapshot.OverlayFile} {
		info, err := os.Stat(filepath.Join(dir, name))
		if err != nil {
			return "", err
		}
		fmt.Fprintf(&text, "%s %d %d\n", name, info.Size(), info.ModTime().UnixNano())
	}
	return text.String(), nil
}
