package api

// DiskUsage is what df prints.
type DiskUsage struct {
	Kinds []DiskUsageKind `json:"kinds"`
	// UsedBytes are what all of it takes together: what is shared counts
	// once.
	UsedBytes int64 `json:"usedBytes"`
	// ReclaimableBytes are what removing all that is reclaimable would free.
	ReclaimableBytes int64 `json:"reclaimableBytes"`
	// FreeBytes and CapacityBytes are those of the file system it is on.
	FreeBytes     int64 `json:"freeBytes"`
	CapacityBytes int64 `json:"capacityBytes"`
}

// DiskUsageKind is what all things of a kind take. What several of them share
// is in each.
type DiskUsageKind struct {
	Kind string `json:"kind"`
	DiskUse
	ReclaimableBytes int64           `json:"reclaimableBytes"`
	Items            []DiskUsageItem `json:"items"`
}

// DiskUsageItem is what one image, snapshot, sandbox... takes.
type DiskUsageItem struct {
	ID   string `json:"id"`
	Name string `json:"name,omitempty"`
	DiskUse
	// Reclaimable things can be removed, and nothing is lost.
	Reclaimable bool `json:"reclaimable,omitempty"`
}

// DiskUse is what files take on the disk.
type DiskUse struct {
	ApparentBytes int64 `json:"apparentBytes"` // as large as they look
	UsedBytes     int64 `json:"usedBytes"`     // what is allocated for them
	SharedBytes   int64 `json:"sharedBytes"`   // of that, what others have too
	UniqueBytes   int64 `json:"uniqueBytes"`   // of that, what would be free without them
}
