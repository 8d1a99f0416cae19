package cli

import (
	"fmt"
	"runtime"

	"github.com/spf13/cobra"

	"github.com/vmsan/vmsan/api"
)

func (a *app) versionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version",
		Args:  arguments(cobra.NoArgs),
		RunE:  func(*cobra.Command, []string) error { return a.runVersion() },
	}
}

func (a *app) runVersion() error {
	if a.json {
		a.printJSON(api.Version{Version: Version, Go: runtime.Version(), OS: runtime.GOOS, Arch: runtime.GOARCH})
		return nil
	}
	fmt.Fprintf(a.stdout, "vmsan %s %s/%s %s\n", Version, runtime.GOOS, runtime.GOARCH, runtime.Version())
	return nil
}
