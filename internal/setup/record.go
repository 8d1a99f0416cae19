package setup

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"time"

	"github.com/google/renameio/v2"

	"github.com/vmsan/vmsan/api"
	"github.com/vmsan/vmsan/internal/scratch"
	"github.com/vmsan/vmsan/internal/store"
)

// recordVersion is the version of setup.json.
const recordVersion = 1

// maxRecord bounds setup.json in bytes.
const maxRecord = 1 << 20

// Record is what setup found out and chose. It is what setup.json holds.
type Record struct {
	// Format is the version of this record.
	Format int `json:"format"`
	// Kernel is the digest of the kernel that sandboxes start with.
	Kernel        string `json:"kernel,omitempty"`
	KernelVersion string `json:"kernel_version,omitempty"`
	// Image is the digest of the default image, ImageName its name. Both
	// are empty if setup was told not to make one.
	Image     string `json:"image,omitempty"`
	ImageName string `json:"image_name,omitempty"`
	// Verdicts are in order of preference.
	Verdicts []Verdict `json:"verdicts,omitempty"`
	// Accel is the accelerator that sandboxes use, the first that works.
	Accel string `json:"accel,omitempty"`
	// Firecracker is what became of a boot with Firecracker. Nil where that is
	// not installed.
	Firecracker *Verdict `json:"firecracker,omitempty"`
	// FirecrackerRelease names the release that setup has put into the state
	// directory. Empty: the programs in the search path are used.
	FirecrackerRelease string `json:"firecracker_release,omitempty"`
	// Pool is where sandboxes get the addresses of their side of the host's
	// network from.
	Pool      netip.Prefix `json:"pool,omitzero"`
	UpdatedAt time.Time    `json:"updated_at"`
}

// DefaultPool is set aside for tests of network devices (RFC 2544), and so
// neither on the internet nor, most likely, on any network of the host's.
var DefaultPool = netip.MustParsePrefix("198.18.0.0/15")

// Verdict tells whether an accelerator could boot a kernel.
type Verdict struct {
	// Accel is "kvm" or "tcg".
	Accel string `json:"accel"`
	Works bool   `json:"works"`
	// Reason is one line on why it does not work.
	Reason string `json:"reason,omitempty"`
	// Seconds is how long the boot took, or the attempt.
	Seconds   float64   `json:"seconds"`
	CheckedAt time.Time `json:"checked_at"`
	// Hung is the host's boot in which the guest was waited for in vain, which
	// takes long: it is not tried again before the next one. Empty: it ended, or
	// works.
	Hung string `json:"hung,omitempty"`
	Basis
}

// Basis is what a verdict depends on: when any of it changes, the accelerator
// is tried again.
type Basis struct {
	// Kernel is the digest of the guest's kernel.
	Kernel string `json:"kernel"`
	// VMM is the VMM's name and version.
	VMM string `json:"vmm"`
	// CPU is the host's CPU model.
	CPU string `json:"cpu"`
	// Host is the release of the host's kernel.
	Host string `json:"host"`
}

// Load reads the record. If there is none, or one that cannot be read, the
// error is ErrSetupRequired.
func Load(l store.Layout) (Record, error) {
	r, err := load(l)
	switch {
	case err == nil:
		return r, nil
	case errors.Is(err, fs.ErrNotExist):
		return Record{}, api.Errorf(api.ErrSetupRequired, "vmsan is not set up in %s", l.Dir).
			WithHint("vmsan setup")
	case errors.Is(err, fs.ErrPermission):
		return Record{}, api.Errorf(api.ErrPermission, "read setup record: %w", err)
	}
	return Record{}, api.Errorf(api.ErrSetupRequired, "read setup record %s: %w", l.SetupRecord(), err).
		WithHint("vmsan setup")
}

func load(l store.Layout) (Record, error) {
	f, err := os.Open(l.SetupRecord())
	if err != nil {
		return Record{}, err
	}
	defer f.Close()
	var r Record
	if err := json.NewDecoder(io.LimitReader(f, maxRecord)).Decode(&r); err != nil {
		return Record{}, err
	}
	if r.Format != recordVersion {
		return Record{}, fmt.Errorf("it has format %d, this vmsan reads %d", r.Format, recordVersion)
	}
	if !r.Pool.IsValid() {
		r.Pool = DefaultPool
	}
	return r, nil
}

// save is called with the setup lock held.
func (r *Record) save(l store.Layout) error {
	r.Format = recordVersion
	r.UpdatedAt = time.Now().UTC().Truncate(time.Second)
	data, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return fmt.Errorf("write setup record: %w", err)
	}
	if err := renameio.WriteFile(l.SetupRecord(), append(data, '\n'), 0o644); err != nil {
		return scratch.Explain(fmt.Errorf("write setup record: %w", err))
	}
	return nil
}

// verdict returns the one on accel, if it was made on that basis.
func (r *Record) verdict(accel string, basis Basis) (Verdict, bool) {
	for _, v := range r.Verdicts {
		if v.Accel == accel && v.Basis == basis {
			return v, true
		}
	}
	return Verdict{}, false
}
