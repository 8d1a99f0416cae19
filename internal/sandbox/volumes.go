package sandbox

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"

	"github.com/vmsan/vmsan/api"
	"github.com/vmsan/vmsan/internal/store"
	"github.com/vmsan/vmsan/internal/vmm"
	"github.com/vmsan/vmsan/internal/volume"
)

// The bounds of volumes.
const (
	DefaultVolume = 10 << 30
	// maxVolumes is what a machine has room for beside its other devices.
	maxVolumes  = vmm.MaxDisks - 2
	maxMountDir = 1024
)

func (s *Service) volumes() volume.Store { return volume.Store{Layout: s.layout} }

// ParseVolume reads NAME:/PATH, NAME:/PATH:ro or NAME:/PATH:rw.
func ParseVolume(text string) (m store.Mount, err error) {
	parts := strings.Split(text, ":")
	if len(parts) == 3 {
		m.ReadOnly = parts[2] == "ro"
	}
	if len(parts) < 2 || len(parts) > 3 || len(parts) == 3 && parts[2] != "ro" && parts[2] != "rw" {
		return m, api.Errorf(api.ErrValidationVolume, "Invalid --volume: %.200q. Must be NAME:/PATH, NAME:/PATH:ro or NAME:/PATH:rw.", text).
			WithFlag("--volume")
	}
	m.Volume, m.Path = parts[0], parts[1]
	return m, checkMount(m)
}

func checkMount(m store.Mount) error {
	if err := CheckVolumeName("--volume", m.Volume); err != nil {
		return err
	}
	return checkMountPath(m.Path)
}

// CheckVolumeName checks the name of a volume, which is what the user calls
// it at flag.
func CheckVolumeName(flag, name string) error {
	if store.ValidName(name) {
		return nil
	}
	err := api.Errorf(api.ErrValidationName, "Invalid %s: %.80q. The name of a volume is 1 to 63 letters, digits, dots, "+
		"dashes and underscores, beginning with a letter or digit.", flag, name).WithFlag(flag)
	if strings.Contains(name, "/") {
		return err.WithHint("directories of the host cannot be mounted; vmsan volume create NAME makes a volume")
	}
	return err
}

// kept are directories of the guest that the kernel and the agent have things
// in.
var kept = []string{"/proc", "/sys", "/dev"}

// checkMountPath checks where a volume is to be in the guest.
func checkMountPath(dir string) error {
	invalid := func(reason string) error {
		return api.Errorf(api.ErrValidationPath, "Invalid --volume: %.200q. %s.", dir, reason).WithFlag("--volume")
	}
	switch {
	case !path.IsAbs(dir):
		return invalid("Must be an absolute path in the guest")
	case len(dir) > maxMountDir:
		return invalid(fmt.Sprintf("Must have no more than %d bytes", maxMountDir))
	case strings.ContainsRune(dir, 0):
		return invalid("Must have no NUL byte")
	case path.Clean(dir) == "/":
		return invalid("The guest's / is its image's")
	case path.Clean(dir) != strings.TrimSuffix(dir, "/"):
		return invalid("Must have no . or .. or doubled slashes in it")
	case path.Clean(dir) == "/run":
		return invalid("The guest's /run is not to be covered")
	}
	for _, k := range kept {
		if within(path.Clean(dir), k) {
			return invalid("The guest's " + k + " is not to be covered")
		}
	}
	return nil
}

func within(dir, parent string) bool { return dir == parent || strings.HasPrefix(dir, parent+"/") }

// checkVolumes checks the volumes of a new sandbox. One with volumes boots:
// the devices of a saved machine cannot be changed.
func (o *CreateOptions) checkVolumes() error {
	if len(o.Volumes) > maxVolumes {
		return api.Errorf(api.ErrValidationVolume, "Invalid --volume: %d volumes. At most %d.", len(o.Volumes), maxVolumes).WithFlag("--volume")
	}
	names, paths := map[string]bool{}, map[string]bool{}
	for i, m := range o.Volumes {
		if err := checkMount(m); err != nil {
			return err
		}
		m.Path = path.Clean(m.Path)
		if names[m.Volume] || paths[m.Path] {
			return api.Errorf(api.ErrValidationVolume, "Invalid --volume: %.200q. The volume or the path is there twice.", m).WithFlag("--volume")
		}
		names[m.Volume], paths[m.Path] = true, true
		o.Volumes[i] = m
	}
	if len(o.Volumes) == 0 {
		return nil
	}
	if o.Snapshot != "" {
		return api.Errorf(api.ErrValidationFlags, "Cannot use --snapshot and --volume together: the devices of a saved machine cannot be changed").
			WithFlag("--volume")
	}
	o.Cold = true
	return nil
}

// lookForVolumes fails if a volume is only to be read and not there.
func (s *Service) lookForVolumes(mounts []store.Mount) error {
	for _, m := range mounts {
		_, err := s.volumes().Get(m.Volume)
		if api.HasCode(err, api.ErrVolumeNotFound) && !m.ReadOnly {
			continue
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// ensureVolumes makes the volumes that are not there. A record names them
// already, so that nobody removes them from here on.
func (s *Service) ensureVolumes(ctx context.Context, mounts []store.Mount) error {
	if err := s.lookForVolumes(mounts); err != nil {
		return err
	}
	for _, m := range mounts {
		_, made, err := s.volumes().Ensure(ctx, m.Volume, DefaultVolume)
		if err != nil {
			return err
		}
		if made {
			s.emit(api.Event{Type: api.EventVolumeCreate, Volume: m.Volume})
		}
	}
	return nil
}

// endDeadHolders ends the machines of dead monitors that have volumes of r: a
// VMM that opens its disks by their paths does not share the monitor's locks,
// and may write to them still.
func (s *Service) endDeadHolders(ctx context.Context, r *store.Record) error {
	if len(r.Spec.Volumes) == 0 {
		return nil
	}
	users, err := s.VolumeUsers()
	if err != nil {
		return err
	}
	for _, m := range r.Spec.Volumes {
		for _, user := range users[m.Volume] {
			if user.ID == r.ID || !unfinished(user) {
				continue
			}
			if _, err := s.repaired(ctx, user.ID); err != nil && !api.HasCode(err, api.ErrVMNotFound) {
				return fmt.Errorf("free volume %s: %w", m.Volume, err)
			}
		}
	}
	return nil
}

// checkSavable refuses to save a machine with volumes: what the guest
// remembers of them does not hold once another has written to them, and two
// copies cannot both write.
func checkSavable(r *store.Record, what string) error {
	if len(r.Spec.Volumes) == 0 {
		return nil
	}
	return api.Errorf(api.ErrUnsupported, "%s: VM %s has the volume %s, which may change while the machine is at rest, and would then be damaged "+
		"by what the machine remembers of it", what, r.ID, r.Spec.Volumes[0].Volume).WithVM(r.ID).
		WithHint("keep what is to be kept in the volume, and create a sandbox with it")
}

// CreateVolume makes an empty volume of size bytes.
func (s *Service) CreateVolume(ctx context.Context, name string, size int64) (volume.Volume, error) {
	if err := CheckVolumeName("NAME", name); err != nil {
		return volume.Volume{}, err
	}
	v, err := s.volumes().Create(ctx, name, size)
	if err == nil {
		s.emit(api.Event{Type: api.EventVolumeCreate, Volume: name})
	}
	return v, err
}

// Volume returns the volume with that name.
func (s *Service) Volume(name string) (volume.Volume, error) { return s.volumes().Get(name) }

// Volumes lists all volumes. One that cannot be read is logged.
func (s *Service) Volumes() ([]volume.Volume, error) {
	volumes, broken, err := s.volumes().List()
	for _, name := range slices.Sorted(maps.Keys(broken)) {
		s.log.Warn(broken[name].Error(), "hint", "vmsan volume rm "+name)
	}
	return volumes, err
}

// VolumeUsers are the sandboxes that were made with each volume.
func (s *Service) VolumeUsers() (map[string][]*store.Record, error) {
	records, _, err := s.layout.List()
	users := map[string][]*store.Record{}
	for _, r := range records {
		for _, m := range r.Spec.Volumes {
			users[m.Volume] = append(users[m.Volume], r)
		}
	}
	return users, err
}

// RemoveVolume removes a volume with all that is in it, unless a sandbox was
// made with it, or that cannot be told.
func (s *Service) RemoveVolume(ctx context.Context, name string) (removed string, err error) {
	if err := s.volumes().Remove(ctx, name, func() error { return s.checkVolumeUnused(name) }); err != nil {
		return name, err
	}
	s.emit(api.Event{Type: api.EventVolumeRemove, Volume: name})
	return name, nil
}

func (s *Service) checkVolumeUnused(name string) error {
	records, broken, err := s.layout.List()
	if err != nil {
		return err
	}
	if len(broken) > 0 {
		return errors.New("remove volume " + name + ": a record of a sandbox cannot be read, which may have it: " +
			strings.Join(slices.Sorted(maps.Keys(broken)), ", "))
	}
	for _, r := range records {
		if _, ok := r.Spec.Mount(name); ok {
			return api.Errorf(api.ErrVolumeInUse, "volume %s is that of VM %s", name, r.ID).WithVM(r.ID).WithHint("vmsan rm %s", r.ID)
		}
	}
	return nil
}
