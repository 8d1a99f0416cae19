package api

import (
	"encoding/json"
	"time"
)

// Snapshot is a sandbox that was saved: memory, commands and disk.
type Snapshot struct {
	ID         string    `json:"id"`
	Name       string    `json:"name,omitempty"`
	CreatedAt  time.Time `json:"createdAt"`
	Source     string    `json:"source,omitempty"` // the sandbox's id
	SourceName string    `json:"sourceName,omitempty"`

	Image       string `json:"image"`
	ImageDigest string `json:"imageDigest"`
	VCPUs       int    `json:"vcpus"`
	MemoryMiB   int    `json:"memoryMiB"`
	DiskBytes   int64  `json:"diskBytes"`

	Driver      string `json:"driver"`
	VMMVersion  string `json:"vmmVersion"`
	Accelerator string `json:"accelerator"`
	CPU         string `json:"cpu"`
	Kernel      string `json:"kernel"` // digest
	Agent       string `json:"agent"`  // digest
	// Policy is what the sandbox could reach.
	Policy json.RawMessage `json:"policy,omitempty"`

	// StoredBytes is what it takes on the disk, about.
	StoredBytes int64                   `json:"storedBytes"`
	Files       map[string]SnapshotFile `json:"files"`
	// PausedMS is how long the source stood still. Of snapshot create.
	PausedMS float64 `json:"pausedMs,omitempty"`
}

// SnapshotFile is one of a snapshot's files.
type SnapshotFile struct {
	Bytes       int64  `json:"bytes"`
	StoredBytes int64  `json:"storedBytes"`
	Digest      string `json:"digest"`
}

// Removed are the ids of what was removed.
type Removed struct {
	IDs []string `json:"removed"`
}

// Archive is a snapshot that was written to a file.
type Archive struct {
	Snapshot string `json:"snapshot"`
	Path     string `json:"path"`
}

// Forks are running copies of a sandbox.
type Forks struct {
	VMs []VM `json:"vms"`
	// PausedMS is how long the source stood still.
	PausedMS float64 `json:"pausedMs"`
}
