package agent

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/vmsan/vmsan/internal/link"
)

// firstVolume is the letter of the disk behind the guest's own, which is vdb.
const firstVolume = 'c'

// mountVolumes mounts the volumes, those first that others may be inside.
func (a *Agent) mountVolumes(volumes []link.Volume) error {
	type mount struct {
		link.Volume
		device string
	}
	var mounts []mount
	for i, v := range volumes {
		mounts = append(mounts, mount{v, "/dev/vd" + string(rune(firstVolume+i))})
	}
	slices.SortStableFunc(mounts, func(a, b mount) int { return cmp.Compare(len(a.Path), len(b.Path)) })
	for _, m := range mounts {
		if !filepath.IsAbs(m.Path) || len(m.Path) > maxPath {
			return fmt.Errorf("volume at %.100q: it is not an absolute path", m.Path)
		}
		if err := a.config.Kernel.MountVolume(m.device, a.system(m.Path), m.ReadOnly); err != nil {
			return fmt.Errorf("volume at %s: %w", m.Path, err)
		}
	}
	return nil
}

// lostAndFound is in every new ext4, for what a repair finds, and in its way as a mere volume: many a
// database wants an empty directory. A repair makes it again.
const lostAndFound = "lost+found"

// MountVolume mounts a volume where the guest's root leads: links in the image stay inside the guest, whose
// own matter they are.
func (linux) MountVolume(device, target string, readOnly bool) error {
	if err := awaitFile("block", device); err != nil {
		return err
	}
	if err := os.MkdirAll(target, 0o755); err != nil {
		return err
	}
	covered, err := os.Stat(target)
	if err != nil {
		return err
	}
	flags, data := uintptr(unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOATIME), "discard"
	if readOnly {
		flags, data = flags|unix.MS_RDONLY, ""
	}
	err = unix.Mount(device, target, "ext4", flags, data)
	if readOnly && errors.Is(err, unix.EROFS) {
		return errors.New("its last writer did not end in order, so that its journal has to be replayed: mount it without :ro once")
	}
	if err != nil {
		return fmt.Errorf("mount %s: %w", device, err)
	}
	if readOnly || unix.Rmdir(filepath.Join(target, lostAndFound)) != nil {
		return nil
	}
	owner := covered.Sys().(*syscall.Stat_t)
	return errors.Join(os.Chown(target, int(owner.Uid), int(owner.Gid)), unix.Chmod(target, owner.Mode&0o7777))
}

// mountedVolumes are the mount points of volumes.
func mountedVolumes() (paths []string) {
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return nil
	}
	for line := range strings.Lines(string(mounts)) {
		fields := strings.Fields(line)
		if len(fields) > 1 && strings.HasPrefix(fields[0], "/dev/vd") && fields[0] >= "/dev/vd"+string(firstVolume) {
			paths = append(paths, unescape(fields[1]))
		}
	}
	return paths
}

// unescape reads a path as the kernel writes it: with octal numbers for what would break up a line.
func unescape(path string) string {
	if plain, err := strconv.Unquote(`"` + path + `"`); err == nil {
		return plain
	}
	return path
}
