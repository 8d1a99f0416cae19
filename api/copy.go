package api

// Copied is what was copied.
type Copied struct {
	// Files counts everything else that is no directory.
	Files       int64 `json:"files"`
	Directories int64 `json:"directories"`
	// Bytes are those in files, or of a tar stream that was written.
	Bytes int64 `json:"bytes"`
	// Skipped are the devices, sockets and pipes, which are not copied.
	Skipped int64 `json:"skipped"`
	// Kept are the files that were there already, of a copy that was resumed.
	Kept int64 `json:"kept,omitempty"`
}
