package api

// Synced is what a sync has done, or with --dry-run would do. With --watch there
// is one each time that something has changed.
type Synced struct {
	// Files counts everything else that is no directory.
	Files       int64 `json:"files"`
	Directories int64 `json:"directories"`
	// Bytes are those in files.
	Bytes   int64 `json:"bytes"`
	Removed int64 `json:"removed"`
	// Skipped are the devices, sockets and pipes, which are not copied.
	Skipped int64 `json:"skipped"`
	// Changes are what --dry-run would do, in this order.
	Changes []SyncChange `json:"changes,omitempty"`
}

// SyncChange is what becomes of one file, or of a directory itself.
type SyncChange struct {
	Action SyncAction `json:"action"`
	// Path is below the destination; that of a directory which is sent ends in a
	// slash.
	Path string `json:"path"`
}

// SyncAction is what is done with a file.
type SyncAction string

// What is done with a file.
const (
	SyncSend   SyncAction = "send"
	SyncRemove SyncAction = "remove"
)
