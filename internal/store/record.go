package store

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"slices"
	"time"

	"github.com/google/renameio/v2"

	"github.com/vmsan/vmsan/api"
	"github.com/vmsan/vmsan/internal/policy"
)

// recordVersion is the version of the records written by this vmsan.
const recordVersion = 1

// maxRecord bounds a record's size in bytes.
const maxRecord = 1 << 20

// Record is all that is known of a sandbox, kept in its record.json. While a
// monitor lives it is the record's only writer; else whoever holds the
// sandbox's lock is.
type Record struct {
	Version int    `json:"version"`
	ID      string `json:"id"`
	Name    string `json:"name,omitempty"`
	Project string `json:"project,omitempty"`
	// Labels are the user's own.
	Labels map[string]string `json:"labels,omitempty"`

	Status api.Status `json:"status"`
	// Reason says in a few words how the sandbox came to its status.
	Reason string `json:"reason,omitempty"`
	// Stalled is not in the record, but beside it: the sandbox runs, but for what
	// StalledReason says.
	Stalled bool `json:"-"`

	CreatedAt time.Time `json:"created_at"`
	StartedAt time.Time `json:"started_at,omitzero"`
	StoppedAt time.Time `json:"stopped_at,omitzero"`

	Spec Spec `json:"spec"`
	// TimeoutAt is when the time limit passes, by the host's clock, while it
	// counts, and TimeoutLeft what is left of it while the sandbox is paused,
	// or less than 0 if it was lifted until the next boot.
	TimeoutAt   time.Time     `json:"timeout_at,omitzero"`
	TimeoutLeft time.Duration `json:"timeout_left_ns,omitempty"`
	// Slot is the sandbox's number, unique in its state directory. Host
	// user ids are made from it.
	Slot int `json:"slot"`
	// Saved is what the next start goes on from, instead of a boot.
	Saved *Saved `json:"saved,omitempty"`
	// Grown is true if the sandbox's own disk may be larger than the file
	// system on it: the guest has yet to grow that.
	Grown bool `json:"grown,omitempty"`
	// Internal sandboxes are vmsan's own, and not listed.
	Internal bool `json:"internal,omitempty"`
	// Ephemeral sandboxes are removed when they stop.
	Ephemeral bool `json:"ephemeral,omitempty"`
	// Interrupted sandboxes were stopped by nobody, and did not end by
	// themselves: the host or their monitor did.
	Interrupted bool `json:"interrupted,omitempty"`

	// Host is what a running sandbox has on the host.
	Host Host `json:"host,omitzero"`
	// Trace is how long the stages of the last start took.
	Trace []api.Stage `json:"trace,omitempty"`
}

// Spec is what the user asked for, with every default filled in.
type Spec struct {
	Image     string `json:"image"` // digest
	ImageName string `json:"image_name"`
	Kernel    string `json:"kernel"` // digest
	Driver    string `json:"driver"`
	// Release is that of Firecracker which runs, or last did, or with whose
	// memory the sandbox goes on. Empty: it is in the search path.
	Release     string `json:"release,omitempty"`
	Accelerator string `json:"accelerator"`
	VCPUs       int    `json:"vcpus"`
	MemoryMiB   int    `json:"memory_mib"`
	// MemoryLeftMiB is how much of it the guest is to have, until it boots
	// again. 0: all.
	MemoryLeftMiB int               `json:"memory_left_mib,omitempty"`
	DiskBytes     int64             `json:"disk_bytes"`
	Env           map[string]string `json:"env,omitempty"`
	Workdir       string            `json:"workdir,omitempty"`
	User          string            `json:"user,omitempty"`
	// Main is the main process, which the sandbox ends with. Restart says when
	// it is started again instead, and StopSignal asks it to end. With a Restart
	// of "always" a sandbox that was interrupted is started with the host, also
	// if it has no main process.
	Main       []string `json:"main,omitempty"`
	Restart    string   `json:"restart,omitempty"`
	StopSignal int      `json:"stop_signal,omitempty"`
	// Init is the image's own init, to run as PID 1. Empty: the agent is.
	Init string `json:"init,omitempty"`
	// Volumes are the machine's disks behind its own.
	Volumes []Mount `json:"volumes,omitempty"`
	// DiskRate, in bytes a second, and DiskIOPS are what it may read and write
	// of each of its disks. 0: as much as it likes.
	DiskRate int64 `json:"disk_rate,omitempty"`
	DiskIOPS int64 `json:"disk_iops,omitempty"`
	// Network is "nat", "none", or, for vmsan's own templates, "detached": a
	// device that leads nowhere. What follows is of the first.
	Network string        `json:"network"`
	Policy  policy.Policy `json:"policy,omitzero"`
	// Pool is where the sandbox's addresses come from, by its slot.
	Pool         netip.Prefix         `json:"pool,omitzero"`
	Resolvers    []netip.AddrPort     `json:"resolvers,omitempty"` // none: the host's
	Publications []policy.Publication `json:"publications,omitempty"`
	Bandwidth    policy.Bandwidth     `json:"bandwidth,omitzero"`

	RequireKVM bool `json:"require_kvm,omitempty"`
	// Overcommit has it start whether or not the host has room for it.
	Overcommit bool `json:"overcommit,omitempty"`
	NoSeccomp  bool `json:"no_seccomp,omitempty"`
	NoCgroup   bool `json:"no_cgroup,omitempty"`
	NoPIDs     bool `json:"no_pid_namespace,omitempty"`
	// Filter has system call filters in the VMM's own format. None: those
	// that it comes with.
	Filter      []byte        `json:"seccomp_filter,omitempty"`
	BootTimeout time.Duration `json:"boot_timeout_ns"`

	// Timeout is how long the sandbox may run, from each start, and IdleTimeout
	// how long it may be idle. 0: as long as it likes. OnTimeout is what is done
	// then; empty: it is stopped.
	Timeout     time.Duration `json:"timeout_ns,omitempty"`
	IdleTimeout time.Duration `json:"idle_timeout_ns,omitempty"`
	OnTimeout   string        `json:"on_timeout,omitempty"`
}

// What is done to a sandbox when a limit of its time has passed.
const (
	OnTimeoutStop     = "stop"
	OnTimeoutPause    = "pause"
	OnTimeoutSnapshot = "snapshot" // saved and stopped
	OnTimeoutRemove   = "remove"
)

// Mount is a volume in a sandbox.
type Mount struct {
	Volume   string `json:"volume"` // name
	Path     string `json:"path"`   // in the guest: absolute
	ReadOnly bool   `json:"read_only,omitempty"`
}

// String is the form that users type.
func (m Mount) String() string {
	if m.ReadOnly {
		return m.Volume + ":" + m.Path + ":ro"
	}
	return m.Volume + ":" + m.Path
}

// Host names what a running sandbox has on the host. It is written before
// any of it is made, so that it can be taken back after a crash.
type Host struct {
	// Processes are those of the monitor, the VMM and the gate.
	Monitor Process `json:"monitor,omitzero"`
	VMM     Process `json:"vmm,omitzero"`
	Gate    Process `json:"gate,omitzero"`
	// UID and GateUID are the host users of the VMM and the gate; 0 without
	// root, when everything runs as the caller.
	UID     uint32 `json:"uid,omitempty"`
	GateUID uint32 `json:"gate_uid,omitempty"`
	// Cgroups are the names of the sandbox's control groups.
	Cgroups []string `json:"cgroups,omitempty"`
	// BootID is the host's boot that all this belongs to.
	BootID string `json:"boot_id,omitempty"`
}

// HasNIC tells whether the machine has a network device.
func (s Spec) HasNIC() bool { return s.Network != "none" }

// Networked tells whether the sandbox has a network.
func (s Spec) Networked() bool { return s.Network == "nat" }

// Writes tells whether the sandbox writes to volumes.
func (s Spec) Writes() bool {
	return slices.ContainsFunc(s.Volumes, func(m Mount) bool { return !m.ReadOnly })
}

// Mount returns how the sandbox has the volume of that name, if it was made
// with it.
func (s Spec) Mount(volume string) (m Mount, ok bool) {
	i := slices.IndexFunc(s.Volumes, func(m Mount) bool { return m.Volume == volume })
	if i < 0 {
		return m, false
	}
	return s.Volumes[i], true
}

// Saved names the files of a machine at rest, and what they are from.
type Saved struct {
	Memory string `json:"memory"` // path
	State  string `json:"state"`  // path
	// Snapshot is the id of a snapshot or template, or "" for what a fork or a
	// pause has left.
	Snapshot string `json:"snapshot,omitempty"`
}

// Process names a process in a way that survives the reuse of its number.
type Process struct {
	PID int `json:"pid"`
	// StartTicks is field 22 of /proc/PID/stat.
	StartTicks uint64 `json:"start_ticks"`
}

// Running tells whether the record says that a monitor should live.
func (r *Record) Running() bool {
	switch r.Status {
	case api.StatusCreating, api.StatusRunning:
		return true
	case api.StatusPaused:
		return !r.Reclaimed()
	}
	return false
}

// Reclaimed tells whether the sandbox is paused and has given its memory back:
// nothing of it runs.
func (r *Record) Reclaimed() bool { return r.Status == api.StatusPaused && r.Saved != nil }

// Load reads the record of the sandbox id. It takes no lock: writes are
// atomic. A sandbox that does not exist is api.ErrVMNotFound, a record that
// cannot be read api.ErrVMRecord.
func (l Layout) Load(id string) (*Record, error) {
	if !ValidID(id) {
		return nil, notFound(id)
	}
	file, err := os.Open(l.Record(id))
	if errors.Is(err, os.ErrNotExist) {
		return nil, notFound(id)
	}
	if err != nil {
		return nil, fmt.Errorf("read record of %s: %w", id, err)
	}
	defer file.Close()
	raw, err := io.ReadAll(io.LimitReader(file, maxRecord+1))
	if err != nil {
		return nil, fmt.Errorf("read record of %s: %w", id, err)
	}
	r, err := ParseRecord(raw)
	if err == nil && r.ID != id {
		err = fmt.Errorf("it is the record of %.20q", r.ID)
	}
	if err != nil {
		return nil, api.Errorf(api.ErrVMRecord, "read record of %s: %w", id, err).WithVM(id).
			WithHint("vmsan rm -f %s", id)
	}
	if r.Status == api.StatusRunning {
		_, err := os.Lstat(l.Stalled(id))
		r.Stalled = err == nil
	}
	return r, nil
}

func notFound(id string) error {
	return api.Errorf(api.ErrVMNotFound, "VM not found: %s", id).WithVM(id).WithHint("vmsan list")
}

// ParseRecord reads a record of this or an older version. Records of a newer
// version are refused.
func ParseRecord(raw []byte) (*Record, error) {
	if len(raw) > maxRecord {
		return nil, fmt.Errorf("it is larger than %d bytes", maxRecord)
	}
	var r Record
	if err := json.Unmarshal(raw, &r); err != nil {
		return nil, err
	}
	if r.Version > recordVersion {
		return nil, fmt.Errorf("a newer vmsan wrote it (version %d, this one knows %d)", r.Version, recordVersion)
	}
	if err := r.migrate(); err != nil {
		return nil, err
	}
	return &r, r.check()
}

// migrate brings an older record to this version. Version 0 is a record
// without a version: it lacks what had no name yet.
func (r *Record) migrate() error {
	if r.Version < 0 {
		return fmt.Errorf("it has version %d", r.Version)
	}
	if r.Version == 0 {
		if r.Spec.Network == "" {
			r.Spec.Network = "none"
		}
		if r.Spec.Driver == "" {
			r.Spec.Driver = "qemu"
		}
	}
	r.Version = recordVersion
	return nil
}

func (r *Record) check() error {
	if !ValidID(r.ID) {
		return fmt.Errorf("it has the id %.20q", r.ID)
	}
	if !r.Status.Valid() {
		return fmt.Errorf("it has the status %.20q", r.Status)
	}
	if r.Slot < 0 || r.Slot >= Slots {
		return fmt.Errorf("it has the slot %d", r.Slot)
	}
	return nil
}

// Save writes r: to a temporary file, synced and renamed, so that a reader
// or a crash sees the old record or the new one.
func (l Layout) Save(r *Record) error {
	r.Version = recordVersion
	raw, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return fmt.Errorf("write record of %s: %w", r.ID, err)
	}
	if err := renameio.WriteFile(l.Record(r.ID), append(raw, '\n'), 0o600, renameio.WithTempDir(l.Sandbox(r.ID))); err != nil {
		return fmt.Errorf("write record of %s: %w", r.ID, err)
	}
	return nil
}

// List reads all records, in the order of their creation. What cannot be
// read is in broken, by id, and does not keep the others from being listed;
// what was removed meanwhile is left out.
func (l Layout) List() (records []*Record, broken map[string]error, err error) {
	ids, err := l.IDs()
	if err != nil {
		return nil, nil, err
	}
	broken = map[string]error{}
	for _, id := range ids {
		r, err := l.Load(id)
		switch {
		case err == nil:
			records = append(records, r)
		case !api.HasCode(err, api.ErrVMNotFound):
			broken[id] = err
		}
	}
	sortByCreation(records)
	return records, broken, nil
}
