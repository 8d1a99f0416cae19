package snapshot

import "github.com/vmsan/vmsan/api"

// Show turns a manifest into what the user sees.
func (m Manifest) Show() api.Snapshot {
	shown := api.Snapshot{
		ID: m.ID, Name: m.Name, CreatedAt: m.CreatedAt, Source: m.SourceID, SourceName: m.SourceName,
		Image: m.ImageName, ImageDigest: m.Image, VCPUs: m.VCPUs, MemoryMiB: m.MemoryMiB, DiskBytes: m.DiskBytes,
		Driver: m.Host.Driver, VMMVersion: m.Host.VMMVersion, Accelerator: m.Host.Accelerator, CPU: m.Host.CPU,
		Kernel: m.Host.Kernel, Agent: m.Host.Agent, Policy: m.Policy, Files: map[string]api.SnapshotFile{},
	}
	for name, f := range m.Files {
		shown.Files[name] = api.SnapshotFile{Bytes: f.Size, StoredBytes: f.Stored, Digest: f.Digest}
		shown.StoredBytes += f.Stored
	}
	return shown
}
