package api

import "time"

// Volume is a disk that outlives sandboxes, as volume create, list and inspect
// print it.
type Volume struct {
	Name      string    `json:"name"`
	CreatedAt time.Time `json:"createdAt"`
	SizeBytes int64     `json:"sizeBytes"`
	// UsedBytes are what it takes on the host's disk.
	UsedBytes int64 `json:"usedBytes"`
	// VMs are the sandboxes that were made with it.
	VMs []VolumeUser `json:"vms,omitempty"`
}

// VolumeUser is a sandbox that was made with a volume.
type VolumeUser struct {
	VM       string `json:"vm"`
	Path     string `json:"path"` // in the guest
	ReadOnly bool   `json:"readOnly,omitempty"`
}
