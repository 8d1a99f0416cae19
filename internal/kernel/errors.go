package kernel

import (
	"errors"
	"runtime"

	"github.com/vmsan/vmsan/api"
	"github.com/vmsan/vmsan/internal/scratch"
)

// invalid gives err the code for kernels that cannot be used, unless it has
// a code already or the disk, not the kernel, is to blame.
func invalid(err error) error {
	var coded *api.Error
	if err == nil || errors.As(err, &coded) {
		return err
	}
	if full := scratch.Explain(err); api.HasCode(full, api.ErrDiskFull) {
		return full
	}
	return api.Errorf(api.ErrKernelInvalid, "%w", err)
}

func checkArch(arch string) error {
	if arch == runtime.GOARCH {
		return nil
	}
	return api.Errorf(api.ErrKernelInvalid, "kernel is for %s and this host is %s", arch, runtime.GOARCH)
}
