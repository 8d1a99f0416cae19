package agent

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// restoredFile is written in place after each restore, for programs that want to know: a watch on it
// (inotify(7)) survives. It holds a line with the guest's new boot id.
const restoredFile = "run/vmsan/restored"

// awakening puts around the steps that make a copied guest another one what has to come before and after
// them: its disk has to take writes again, and its commands, which hold still since before it was copied, do
// nothing until all is done.
func (a *Agent) awakening(steps []step) []step {
	before := []step{{"thaw", func() error { return a.config.Kernel.Thaw(a.config.DiskMount) }}}
	after := []step{
		{"connections", a.config.Kernel.ResetConnections},
		{"notice", a.tellRestored},
		{"wake", func() error { return a.forest.hold(false) }},
	}
	return append(append(before, steps...), after...)
}

// tellRestored writes the file that tells of a restore.
func (a *Agent) tellRestored() error {
	id, err := os.ReadFile(bootIDFile)
	if err != nil {
		return fmt.Errorf("read boot id: %w", err)
	}
	path := a.system(restoredFile)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return os.WriteFile(path, id, fs.FileMode(0o644))
}
