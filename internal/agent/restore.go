package agent

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmsan/vmsan/internal/guest/wire"
)

// What a copied guest does before its first command is translated anew where its CPU is emulated, each
// instruction as it comes: most of what is odd here spares code.

// restoredFile is written in place after each restore, for programs that want to know: a watch on it
// (inotify(7)) survives. It holds a line with the guest's new boot id.
const restoredFile = "run/vmsan/restored"

// awakening puts around the steps that make a copied guest another one what has to come before and after
// them: its disk has to take writes again, and its commands, which hold still since before it was copied, do
// nothing until all is done.
func (a *Agent) awakening(steps []step) []step {
	before := []step{{"thaw", a.thaw}}
	after := []step{
		{"connections", a.config.Kernel.ResetConnections},
		{"notice", a.tellRestored},
		{"wake", a.wake},
	}
	// Beside an init of the image there are processes that are not held.
	a.unseen.Store(a.config.ReapOrphans && a.forest.holds())
	return append(append(before, steps...), after...)
}

func (a *Agent) thaw() error {
	if !a.frozen.Load() {
		return nil
	}
	err := a.config.Kernel.Thaw(a.config.DiskMount)
	if err == nil {
		a.frozen.Store(false)
	}
	return err
}

func (a *Agent) wake() error {
	a.unseen.Store(false)
	return a.forest.hold(false)
}

// bootID is what programs of the guest see; "" without /proc.
func bootID() string {
	id, _ := readPlain(bootIDFile)
	return strings.TrimSpace(id)
}

// readPlain reads a small file of the kernel's at once. Package os would first have its poller look at it.
func readPlain(path string) (string, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", err
	}
	defer unix.Close(fd)
	text := make([]byte, 1024)
	n, err := unix.Read(fd, text)
	return string(text[:max(n, 0)]), err
}

// tellRestored writes the file that tells of a restore.
func (a *Agent) tellRestored() error {
	id, err := readPlain(bootIDFile)
	if err != nil {
		return fmt.Errorf("read boot id: %w", err)
	}
	path := a.system(restoredFile)
	if overwrite(path, id, 0o644) == nil {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return os.WriteFile(path, []byte(id), 0o644)
}

// overwrite writes a file that is there in place, unless there is something special about it.
func overwrite(path, text string, mode fs.FileMode) error {
	fd, err := unix.Open(path, unix.O_WRONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	var stat unix.Stat_t
	if err := unix.Fstat(fd, &stat); err != nil {
		return err
	}
	if stat.Mode != unix.S_IFREG|uint32(mode.Perm()) || stat.Nlink != 1 {
		return syscall.EINVAL
	}
	n, err := unix.Pwrite(fd, []byte(text), 0)
	if err == nil && n < len(text) {
		err = syscall.ENOSPC
	}
	if err == nil && stat.Size > int64(len(text)) {
		err = unix.Ftruncate(fd, int64(len(text)))
	}
	return err
}

// settle makes a guest one that copies of can start quickly: what they need is in its memory, and what was
// put off is done.
func (a *Agent) settle() error {
	a.config.Settle()
	runtime.GC() // so that none comes soon
	for _, args := range rehearsals {
		if err := a.rehearse(args); err != nil {
			a.config.Logger.Debug("rehearse", "command", args[0], "error", err)
		}
	}
	if err := a.tellRestored(); err != nil {
		return err
	}
	unix.Sync()
	time.Sleep(settleTime)
	return nil
}

// settleTime is what the kernel's work goes on for that has to do with a boot. The longest is the check for
// duplicates of a link-local address.
const settleTime = 2500 * time.Millisecond

// rehearsals are commands whose files most others need too. An image need not have them.
var rehearsals = [][]string{{"/bin/true"}, {"/bin/sh", "-c", ":"}}

func (a *Agent) rehearse(args []string) error {
	r, err := a.startRequest(&wire.Request{Args: args})
	if err != nil {
		return err
	}
	err = r.starter.follow(context.Background(), func(source, chunk) error { return nil })
	<-r.ended
	return err
}
