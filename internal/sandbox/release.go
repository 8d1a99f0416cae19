package sandbox

import (
	"context"
	"fmt"
	"os"
	"strings"

	"github.com/vmsan/vmsan/api"
	"github.com/vmsan/vmsan/internal/setup"
	"github.com/vmsan/vmsan/internal/snapshot"
	"github.com/vmsan/vmsan/internal/store"
	"github.com/vmsan/vmsan/internal/vmm/firecracker"
	"github.com/vmsan/vmsan/internal/vmm/firecracker/release"
)

func releases(layout store.Layout) release.Store {
	return release.Store{Dir: layout.Releases(), Tmp: layout.Tmp()}
}

// release is that of Firecracker with which machines of a driver boot.
func (s *Service) release(driver string) string {
	record, err := setup.Load(s.layout)
	if err != nil || driver != firecracker.Name {
		return ""
	}
	return record.FirecrackerRelease
}

// releaseOf is the release that has saved a machine, if that is here still, and
// else the one with which machines boot.
func (s *Service) releaseOf(host snapshot.Host) string {
	current := s.release(host.Driver)
	entries, err := os.ReadDir(s.layout.Releases())
	if err != nil || host.Driver != firecracker.Name || saves(current, host) {
		return current
	}
	for _, e := range entries {
		if saves(e.Name(), host) {
			return e.Name()
		}
	}
	return current
}

// saves tells whether a release has the version that has saved a machine.
func saves(name string, host snapshot.Host) bool {
	return host.Driver == firecracker.Name && strings.HasPrefix(name, host.VMMVersion+"-")
}

// specOf is what is known of the VMM of a machine at rest.
func (s *Service) specOf(host snapshot.Host) store.Spec {
	return store.Spec{Driver: host.Driver, Accelerator: host.Accelerator, Kernel: host.Kernel, Release: s.releaseOf(host)}
}

// installRelease is setup's step; see setup.Options.
func (s *Service) installRelease(from release.Source) func(context.Context, string, func(setup.State, string)) (string, error) {
	return func(ctx context.Context, current string, event func(setup.State, string)) (string, error) {
		all := releases(s.layout)
		var damage error
		if current != "" {
			m, err := all.Check(current)
			if err == nil && (from == release.Source{} || from.IsDownloadOf(m.Version)) {
				event(setup.Kept, m.Version)
				return current, nil
			}
			damage = err
		}
		switch {
		case from == release.Source{} && damage != nil:
			return "", api.Errorf(api.ErrSetupMissingBinary, "%w", damage).WithHint("vmsan setup --firecracker")
		case from == release.Source{}:
			return "", nil
		case os.Geteuid() != 0:
			return "", api.Errorf(api.ErrPermission, "Firecracker's jailer needs root").WithHint("sudo vmsan setup")
		}
		event(setup.Running, from.String())
		name, m, err := all.Install(ctx, from)
		if err != nil {
			return "", err
		}
		event(setup.Done, fmt.Sprintf("%s, SHA-256 %.12s", m.Version, m.Programs["firecracker"]))
		return name, nil
	}
}

// pruneReleases removes the releases that neither setup nor anybody else needs,
// once it is written down which one setup has.
func (s *Service) pruneReleases(current string) error {
	return releases(s.layout).Prune(func(name string) bool { return name == current || s.usesRelease(name) })
}

// usesRelease tells whether a sandbox or a snapshot needs a release of
// Firecracker.
func (s *Service) usesRelease(name string) bool {
	snapshots, brokenSnapshots, err := s.snapshots().List()
	if err != nil || len(brokenSnapshots) > 0 {
		return true
	}
	for _, m := range snapshots {
		if saves(name, m.Host) {
			return true
		}
	}
	records, broken, err := s.layout.List()
	if err != nil || len(broken) > 0 {
		return true
	}
	for _, r := range records {
		if r.Spec.Release == name {
			return true
		}
	}
	return false
}

// exportRelease writes the release that setup has chosen to a file.
func (s *Service) exportRelease(r setup.Record, to string) error {
	if r.FirecrackerRelease == "" {
		return api.Errorf(api.ErrSetupMissingBinary, "there is no release of Firecracker in %s that could be exported", s.layout.Dir).
			WithFlag("--bundle-out").WithHint("vmsan setup --firecracker --bundle-out FILE")
	}
	if err := releases(s.layout).Export(r.FirecrackerRelease, to); err != nil {
		return fmt.Errorf("write bundle: %w", err)
	}
	return nil
}
