package monitor

import (
	"errors"
	"strings"
	"time"

	"github.com/vmsan/vmsan/api"
	"github.com/vmsan/vmsan/internal/link"
	"github.com/vmsan/vmsan/internal/store"
	"github.com/vmsan/vmsan/internal/vmm"
	"github.com/vmsan/vmsan/internal/volume"
)

// openVolumes opens and locks the sandbox's volumes until its end. QEMU has the
// same open files, and so the locks: a monitor that is killed does not let go
// of a volume that it still writes to. Firecracker opens them itself, and is
// ended before anybody else gets a volume of a monitor that has died: that is
// why the record has its process as soon as there is one.
func (m *monitor) openVolumes() (disks []vmm.Disk, err error) {
	for i, v := range m.record.Spec.Volumes {
		file, err := volume.Store{Layout: m.layout}.Open(v.Volume, v.ReadOnly)
		if errors.Is(err, volume.ErrHeld) {
			return nil, m.volumeHeld(v)
		}
		if err != nil {
			return nil, err
		}
		m.undo.Add(file.Close)
		disks = append(disks, vmm.Disk{Name: "volume" + string(rune('a'+i)), File: file, ReadOnly: v.ReadOnly})
	}
	return disks, nil
}

// volumeHeld says who has a volume.
func (m *monitor) volumeHeld(v store.Mount) error {
	err := api.Errorf(api.ErrVolumeInUse, "volume %s is in use", v.Volume)
	records, _, listErr := m.layout.List()
	if listErr != nil {
		return errors.Join(err, listErr)
	}
	var holders []string
	writes := false
	for _, r := range records {
		theirs, ok := r.Spec.Mount(v.Volume)
		if r.ID == m.id || !r.Running() || !ok {
			continue
		}
		holders = append(holders, r.ID)
		writes = writes || !theirs.ReadOnly
	}
	who := "VMs " + strings.Join(holders, ", ") + " read"
	switch {
	case len(holders) == 0:
		return err.WithHint("try again: its sandbox is just ending")
	case writes:
		who = "VM " + strings.Join(holders, ", ") + " writes to"
	case len(holders) == 1:
		who = "VM " + holders[0] + " reads"
	}
	return api.Errorf(api.ErrVolumeInUse, "%s volume %s; either one sandbox writes to a volume, or any number read it", who, v.Volume).
		WithHint("vmsan stop %s", strings.Join(holders, " "))
}

// guestVolumes is what the guest is told of its volumes.
func guestVolumes(mounts []store.Mount) (volumes []link.Volume) {
	for _, m := range mounts {
		volumes = append(volumes, link.Volume{Path: m.Path, ReadOnly: m.ReadOnly})
	}
	return volumes
}

// lastGrace is how long the guest has to end when nobody waits for it any more:
// none, unless it has yet to write something that outlives it.
func (m *monitor) lastGrace() time.Duration {
	if m.record.Spec.Writes() {
		return DefaultGrace
	}
	return 0
}
