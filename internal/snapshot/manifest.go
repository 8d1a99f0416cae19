package snapshot

import (
	"encoding/json"
	"fmt"
	"regexp"
	"time"

	"github.com/vmsan/vmsan/api"
	"github.com/vmsan/vmsan/internal/store"
)

// formatVersion is the version of the manifests written by this vmsan.
const formatVersion = 1

// maxManifest bounds a manifest in bytes.
const maxManifest = 1 << 20

// Manifest is all that is known of a snapshot. It is what manifest.json holds.
type Manifest struct {
	// Format, ID, CreatedAt and Files are filled in when the snapshot is
	// published; the rest is its maker's.
	Format    int             `json:"format"`
	ID        string          `json:"id"`
	CreatedAt time.Time       `json:"created_at"`
	Files     map[string]File `json:"files"`

	// Name is the user's, unique, optional.
	Name string `json:"name,omitempty"`
	// SourceID and SourceName are of the sandbox that was saved.
	SourceID   string `json:"source_id,omitempty"`
	SourceName string `json:"source_name,omitempty"`

	Host      Host   `json:"host"`
	Image     string `json:"image"` // digest
	ImageName string `json:"image_name,omitempty"`
	VCPUs     int    `json:"vcpus"`
	MemoryMiB int    `json:"memory_mib"`
	DiskBytes int64  `json:"disk_bytes"`

	// Policy and Guest are kept for the maker and not looked into: what the
	// sandbox may reach, and who the guest was told to be.
	Policy json.RawMessage `json:"policy,omitempty"`
	Guest  json.RawMessage `json:"guest,omitempty"`
}

// File describes one of a snapshot's files.
type File struct {
	// Size is the length in bytes, holes included.
	Size int64 `json:"size"`
	// Stored is how many bytes are in chunks that are not all zero.
	Stored int64 `json:"stored"`
	// Digest is that of package snapshot's documentation.
	Digest string `json:"digest"`
}

// Host is what a snapshot depends on besides its own files and its image.
type Host struct {
	Driver      string `json:"driver"`
	VMMVersion  string `json:"vmm_version"`
	Accelerator string `json:"accelerator"`
	// CPU is the guest's CPU with its features, as the driver calls it.
	CPU string `json:"cpu"`
	// TSCkHz is the rate of the guest's time stamp counter if the guest
	// depends on it, else 0.
	TSCkHz uint64 `json:"tsc_khz,omitempty"`
	Kernel string `json:"kernel"` // digest
	Agent  string `json:"agent"`  // digest
}

// maxTSCError is how far two measurements of one counter's rate can be
// apart, in parts per million.
const maxTSCError = 2000

// Fits returns an ErrSnapshotUnfit that says why the snapshot cannot be
// restored on here, or nil. The agent need not be the same: the one in the
// snapshot's memory goes on.
func (m *Manifest) Fits(here Host) error {
	for _, c := range []struct{ what, saved, here string }{
		{"the driver", m.Host.Driver, here.Driver},
		{"version of " + m.Host.Driver, m.Host.VMMVersion, here.VMMVersion},
		{"the accelerator", m.Host.Accelerator, here.Accelerator},
		{"the CPU", m.Host.CPU, here.CPU},
		{"the guest's kernel", m.Host.Kernel, here.Kernel},
	} {
		if c.saved != c.here {
			return m.unfit("%s was %.200q there and is %.200q here", c.what, c.saved, c.here)
		}
	}
	if !sameRate(m.Host.TSCkHz, here.TSCkHz) {
		return m.unfit("the CPU's time stamp counter ran at %d kHz there and runs at %d kHz here", m.Host.TSCkHz, here.TSCkHz)
	}
	return nil
}

func (m *Manifest) unfit(format string, args ...any) error {
	return api.Errorf(api.ErrSnapshotUnfit, "snapshot %s does not fit this host: %s", m.ID, fmt.Sprintf(format, args...)).
		WithHint("make the snapshot again on this host")
}

func sameRate(a, b uint64) bool {
	low, high := float64(min(a, b)), float64(max(a, b))
	return high-low <= high*maxTSCError/1e6
}

var validID = regexp.MustCompile(`^sn[a-z0-9]{10}$`)

// ValidID tells whether id has the form of a snapshot's id: sn and 10
// lower-case letters or digits.
func ValidID(id string) bool { return validID.MatchString(id) }

// ValidName tells whether name can be a snapshot's. What could be taken for
// an id is none.
func ValidName(name string) bool { return store.ValidName(name) && !ValidID(name) }
