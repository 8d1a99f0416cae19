package snapshot

import (
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"time"
	"unicode"

	"github.com/vmsan/vmsan/api"
	"github.com/vmsan/vmsan/internal/store"
)

// formatVersion is the version of the manifests written by this vmsan.
const formatVersion = 1

// maxManifest bounds a manifest in bytes.
const maxManifest = 1 << 20

// Manifest is all that is known of a snapshot. It is what manifest.json holds.
type Manifest struct {
	// Format, ID and Files are filled in when the snapshot is published, and
	// CreatedAt if it is zero; the rest is its maker's.
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

// The bounds of what a manifest may say, which may come from anywhere.
const (
	maxVCPUs     = 32
	maxMemoryMiB = 4 << 20
	maxDiskBytes = 16 << 40
	maxState     = 64 << 20
	maxText      = 200
)

var digestForm = regexp.MustCompile(`^[0-9a-f]{64}$`)

// parseManifest reads a manifest that anybody may have written.
func parseManifest(raw []byte) (Manifest, error) {
	var m Manifest
	if len(raw) > maxManifest {
		return m, fmt.Errorf("it is larger than %d bytes", maxManifest)
	}
	if err := json.Unmarshal(raw, &m); err != nil {
		return m, err
	}
	return m, m.check()
}

func (m *Manifest) check() error {
	switch {
	case m.Format != formatVersion:
		return fmt.Errorf("it has format %d, this vmsan reads %d", m.Format, formatVersion)
	case !ValidID(m.ID):
		return fmt.Errorf("it has the id %.20q", m.ID)
	case m.Name != "" && !ValidName(m.Name):
		return fmt.Errorf("it has the name %.80q", m.Name)
	case m.VCPUs < 1 || m.VCPUs > maxVCPUs:
		return fmt.Errorf("it has %d CPUs", m.VCPUs)
	case m.MemoryMiB < 1 || m.MemoryMiB > maxMemoryMiB:
		return fmt.Errorf("it has %d MiB of memory", m.MemoryMiB)
	case m.DiskBytes < 0 || m.DiskBytes > maxDiskBytes:
		return fmt.Errorf("it has a disk of %d bytes", m.DiskBytes)
	case !digestForm.MatchString(m.Image):
		return fmt.Errorf("it has the image %.80q", m.Image)
	case !digestForm.MatchString(m.Host.Kernel):
		return fmt.Errorf("it has the kernel %.80q", m.Host.Kernel)
	}
	if err := m.checkTexts(); err != nil {
		return err
	}
	return m.checkFiles()
}

// checkTexts keeps what is only shown or compared short and on one line.
func (m *Manifest) checkTexts() error {
	for what, text := range map[string]string{
		"source": m.SourceID, "source's name": m.SourceName, "image's name": m.ImageName,
		"driver": m.Host.Driver, "VMM's version": m.Host.VMMVersion, "accelerator": m.Host.Accelerator,
		"CPU": m.Host.CPU, "kernel": m.Host.Kernel, "agent": m.Host.Agent,
	} {
		if len(text) > maxText || strings.ContainsFunc(text, func(r rune) bool { return !unicode.IsPrint(r) }) {
			return fmt.Errorf("its %s is no such thing: %.40q", what, text)
		}
	}
	return nil
}

func (m *Manifest) checkFiles() error {
	for _, name := range fileNames {
		f, ok := m.Files[name]
		if !ok {
			return fmt.Errorf("it lacks the file %s", name)
		}
		if err := f.check(); err != nil {
			return fmt.Errorf("its file %s %w", name, err)
		}
	}
	switch {
	case len(m.Files) != len(fileNames):
		return errors.New("it has files that no snapshot has")
	case m.Files[MemoryFile].Size != int64(m.MemoryMiB)<<20:
		return errors.New("its memory has another size than it says")
	case m.Files[OverlayFile].Size != m.DiskBytes:
		return errors.New("its disk has another size than it says")
	case m.Files[StateFile].Size > maxState:
		return fmt.Errorf("its state is larger than %d bytes", maxState)
	}
	return nil
}

func (f File) check() error {
	switch {
	case f.Size < 0 || f.Size > max(maxDiskBytes, maxMemoryMiB<<20):
		return fmt.Errorf("has %d bytes", f.Size)
	case f.Stored < 0 || f.Stored > f.Size || f.Stored%Chunk != 0 && f.Stored%Chunk != f.Size%Chunk:
		return fmt.Errorf("has %d bytes of which %d are stored", f.Size, f.Stored)
	case !digestForm.MatchString(f.Digest):
		return fmt.Errorf("has the digest %.80q", f.Digest)
	}
	return nil
}
