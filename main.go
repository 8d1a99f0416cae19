package vmsan

import (
	"debug/elf"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync/atomic"

	"github.com/vmsan/vmsan/api"
	"github.com/vmsan/vmsan/internal/cli"
)

// helps is true once this program has called Main, and so can be what sandboxes
// need beside them.
var helps atomic.Bool

// Main has this program be the vmsan program that owns sandboxes, so that
// nothing else has to be installed. It is called first thing in main: a process
// that was started as a helper of a sandbox does that work there and does not
// return; in all others Main returns at once.
//
// Such a program is built with CGO_ENABLED=0, for a helper runs where there are
// no libraries.
func Main() {
	if cli.IsHelper(os.Args) {
		os.Exit(cli.Main(os.Args))
	}
	helps.Store(true)
}

// findBinary finds the vmsan program.
func findBinary(named string) (string, error) {
	if named == "" && helps.Load() {
		self, err := os.Executable()
		if err != nil {
			return "", err
		}
		return self, checkStatic(self)
	}
	hint := "install vmsan; or name it in vmsan.Options.Binary, or call vmsan.Main first thing in main"
	if named == "" {
		named = "vmsan"
	}
	path, err := exec.LookPath(named)
	if err == nil {
		path, err = filepath.Abs(path)
	}
	if err != nil {
		return "", api.Errorf(api.ErrSetupMissingBinary, "find the vmsan program: %w", err).WithHint("%s", hint)
	}
	return path, nil
}

// checkStatic fails for a program that needs libraries to run.
func checkStatic(path string) error {
	file, err := elf.Open(path)
	if err != nil {
		return err
	}
	defer file.Close()
	if slices.ContainsFunc(file.Progs, func(p *elf.Prog) bool { return p.Type == elf.PT_INTERP }) {
		return api.Errorf(api.ErrUnsupported, "%s needs libraries, and its helpers run where there are none: %w", path, errDynamic).
			WithHint("CGO_ENABLED=0 go build; or name the vmsan program in vmsan.Options.Binary")
	}
	return nil
}

var errDynamic = errors.New("it is linked dynamically")
