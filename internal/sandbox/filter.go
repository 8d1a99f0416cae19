package sandbox

import (
	"context"
	"errors"

	"github.com/vmsan/vmsan/api"
	"github.com/vmsan/vmsan/internal/vmm/firecracker"
)

func (o *CreateOptions) checkFilter() error {
	if o.Filter != "" && o.NoSeccomp {
		return api.Errorf(api.ErrValidationFlags, "Cannot use --seccomp-filter and --no-seccomp together").
			WithFlag("--seccomp-filter").WithHint("use either --seccomp-filter or --no-seccomp")
	}
	return nil
}

// readFilter returns the filters that a sandbox of a driver is to have.
func (o *CreateOptions) readFilter(ctx context.Context, driver string, release firecracker.Driver) ([]byte, error) {
	if o.Filter == "" {
		return nil, nil
	}
	if driver != firecracker.Name {
		return nil, api.Errorf(api.ErrUnsupported, "--seccomp-filter is not supported by the driver %s, which has one filter of its own", driver).
			WithFlag("--seccomp-filter").WithHint("vmsan create --driver firecracker, or without --seccomp-filter")
	}
	filter, err := release.ReadFilter(ctx, o.Filter)
	switch {
	case errors.Is(err, firecracker.ErrNoCompiler):
		return nil, api.Errorf(api.ErrSetupMissingBinary, "%w", err).WithFlag("--seccomp-filter").
			WithHint("seccompiler-bin comes with Firecracker's release; or compile the filter elsewhere, and give what comes of it")
	case err != nil:
		return nil, api.Errorf(api.ErrValidationPath, "Invalid --seccomp-filter: %w", err).WithFlag("--seccomp-filter")
	}
	return filter, nil
}
