package api

import "time"

// Stats is what a sandbox takes of its host at a time, and what it says of
// itself.
type Stats struct {
	VM   string `json:"vm"`
	Name string `json:"name,omitempty"`
	// Status is empty if it is gone.
	Status Status    `json:"status,omitempty"`
	Time   time.Time `json:"time"`
	// Host is absent unless something of it runs.
	Host *HostStats `json:"host,omitempty"`
	// Rates are absent the first time that a sandbox is seen to run.
	Rates *StatsRates `json:"rates,omitempty"`
	// Guest is absent unless it runs, and answers with what can be.
	Guest *GuestStats `json:"guest,omitempty"`
	// OverlayBytes are what its own disk takes on the host's.
	OverlayBytes int64 `json:"overlayBytes"`
}

// HostStats is what a sandbox's VMM, monitor and gate take together since it
// was started.
type HostStats struct {
	CPUSeconds float64 `json:"cpuSeconds"`
	RSSBytes   int64   `json:"rssBytes"`
	// PSSBytes are less what is another's of memory that they share with
	// others. It and Disk are absent if this user may not know.
	PSSBytes int64      `json:"pssBytes,omitempty"`
	Disk     *DiskStats `json:"disk,omitempty"`
	// Network is absent without one.
	Network *NetworkStats `json:"network,omitempty"`
}

// DiskStats are bytes that the VMM had the host's disks read and write.
type DiskStats struct {
	ReadBytes    int64 `json:"readBytes"`
	WrittenBytes int64 `json:"writtenBytes"`
}

// NetworkStats are bytes that a sandbox received and sent.
type NetworkStats struct {
	ReceivedBytes uint64 `json:"receivedBytes"`
	SentBytes     uint64 `json:"sentBytes"`
}

// StatsRates are what changed since the last time, for each second.
type StatsRates struct {
	Seconds      float64 `json:"seconds"`    // since then
	CPUPercent   float64 `json:"cpuPercent"` // 100 is one CPU of the host
	ReadBytes    float64 `json:"readBytes"`
	WrittenBytes float64 `json:"writtenBytes"`
	// ReceivedBytes and SentBytes are of the network.
	ReceivedBytes float64 `json:"receivedBytes"`
	SentBytes     float64 `json:"sentBytes"`
}

// GuestStats is what a sandbox says of itself.
type GuestStats struct {
	MemoryBytes     int64 `json:"memoryBytes"`
	MemoryUsedBytes int64 `json:"memoryUsedBytes"`
	DiskBytes       int64 `json:"diskBytes"`
	DiskUsedBytes   int64 `json:"diskUsedBytes"`
	Processes       int   `json:"processes"`
}
