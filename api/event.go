package api

import "time"

// EventType says what an event is about: a noun and what became of it.
type EventType string

// The types of events.
const (
	EventVMCreate  EventType = "vm.create"
	EventVMStart   EventType = "vm.start" // its monitor has begun to bring it up
	EventVMRunning EventType = "vm.running"
	EventVMPause   EventType = "vm.pause"
	EventVMResume  EventType = "vm.resume"
	EventVMStop    EventType = "vm.stop"
	EventVMError   EventType = "vm.error"
	EventVMRemove  EventType = "vm.remove"
	EventVMRename  EventType = "vm.rename"
	EventVMResize  EventType = "vm.resize"
	EventVMPolicy  EventType = "vm.policy"
	EventVMExtend  EventType = "vm.extend"
	EventVMFork    EventType = "vm.fork"
	EventVMRestore EventType = "vm.restore"

	EventSnapshotCreate EventType = "snapshot.create"
	EventSnapshotRemove EventType = "snapshot.remove"
	EventSnapshotExport EventType = "snapshot.export"
	EventSnapshotImport EventType = "snapshot.import"

	EventTemplateCreate EventType = "template.create"
	EventTemplateRemove EventType = "template.remove"

	EventImagePull   EventType = "image.pull"
	EventImageImport EventType = "image.import"
	EventImageBuild  EventType = "image.build"
	EventImageCommit EventType = "image.commit"
	EventImageTag    EventType = "image.tag"
	EventImageExport EventType = "image.export"
	EventImageRemove EventType = "image.remove"

	EventVolumeCreate EventType = "volume.create"
	EventVolumeRemove EventType = "volume.remove"

	EventSetup EventType = "setup.done"

	// EventNetworkDenied is of a sandbox whose network has refused something.
	EventNetworkDenied EventType = "network.denied"
)

// EventTypes are all of them.
var EventTypes = []EventType{
	EventVMCreate, EventVMStart, EventVMRunning, EventVMPause, EventVMResume, EventVMStop, EventVMError, EventVMRemove, EventVMRename,
	EventVMResize, EventVMPolicy, EventVMExtend, EventVMFork, EventVMRestore, EventSnapshotCreate, EventSnapshotRemove, EventSnapshotExport,
	EventSnapshotImport, EventTemplateCreate, EventTemplateRemove, EventImagePull, EventImageImport, EventImageBuild, EventImageCommit,
	EventImageTag, EventImageExport, EventImageRemove, EventVolumeCreate, EventVolumeRemove, EventSetup, EventNetworkDenied,
}

// Event is something that happened in a state directory: a line of what
// events prints. What does not belong to its type is absent.
type Event struct {
	Time time.Time `json:"time"`
	Type EventType `json:"type"`
	// VM is the id of the sandbox concerned, and Name what it was called then.
	VM   string `json:"vm,omitempty"`
	Name string `json:"name,omitempty"`
	// Reason is why it stopped, failed or was paused.
	Reason string `json:"reason,omitempty"`
	// From is what a start went on from: "boot", "template", "snapshot", "fork"
	// or, after a pause that gave it back, "memory".
	From string `json:"from,omitempty"`
	// PreviousName is what it was called before a rename.
	PreviousName string `json:"previousName,omitempty"`
	// DiskBytes and MemoryMiB are what it was resized to.
	DiskBytes int64 `json:"diskBytes,omitempty"`
	MemoryMiB int   `json:"memoryMiB,omitempty"`
	// Policy is the mode of its new network policy.
	Policy string `json:"policy,omitempty"`
	// TimeoutAt is when its time limit passes now; absent if that was lifted, or
	// the sandbox is paused.
	TimeoutAt time.Time `json:"timeoutAt,omitzero"`
	// Copies are the ids of its forks.
	Copies []string `json:"copies,omitempty"`

	Snapshot string `json:"snapshot,omitempty"` // id
	Template string `json:"template,omitempty"` // id
	Volume   string `json:"volume,omitempty"`   // name
	Image    string `json:"image,omitempty"`    // name
	// ImageDigest is absent where a name was taken off an image that stays.
	ImageDigest string `json:"imageDigest,omitempty"`

	// Network is what was refused, and Unwritten how many more events of the
	// kind there were since the last one that was written.
	Network   *NetworkEvent `json:"network,omitempty"`
	Unwritten int           `json:"unwritten,omitempty"`
}
