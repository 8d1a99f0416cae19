package store

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/vmsan/vmsan/api"
)

// Layout names every file vmsan keeps on the host; docs/state.md lists them
// with their writers. Paths are built here and nowhere else.
type Layout struct {
	// Dir is the state directory: absolute, survives a reboot.
	Dir string
	// Run is the directory of sockets: absolute, short, gone after a reboot.
	Run string
}

// rootDir is where a state directory lives if nothing else was said and the
// user is root (FHS 3.0, section 5.8).
const rootDir = "/var/lib/vmsan"

// maxSocketPath is sizeof(sockaddr_un.sun_path), with the NUL: unix(7).
const maxSocketPath = 108

// NewLayout returns the layout of the state directory dir. An empty dir
// means the default: /var/lib/vmsan for root, $XDG_STATE_HOME/vmsan (or
// ~/.local/state/vmsan) for others. Nothing is created. It is the same by any
// path that leads there.
//
// Socket paths have to fit into 108 bytes whatever dir is, so they live in
// a run directory of their own, named after a digest of dir.
func NewLayout(dir string) (Layout, error) {
	root := os.Geteuid() == 0
	if dir == "" {
		var err error
		if dir, err = defaultDir(root); err != nil {
			return Layout{}, err
		}
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return Layout{}, fmt.Errorf("make state directory absolute: %w", err)
	}
	if dir, err = resolve(dir); err != nil {
		return Layout{}, api.Errorf(api.ErrValidationStateDir, "find state directory: %w", err).WithFlag("--dir")
	}
	l := Layout{Dir: dir, Run: runDir(dir, root)}
	if longest := l.GuestSocket("vm0123456789"); len(longest) >= maxSocketPath {
		return Layout{}, fmt.Errorf("run directory %s: socket paths in it would pass %d bytes", l.Run, maxSocketPath-1)
	}
	return l, nil
}

// resolve follows the links in a path, of which the end need not be there.
func resolve(path string) (string, error) {
	real, err := filepath.EvalSymlinks(path)
	if !errors.Is(err, fs.ErrNotExist) || path == "/" {
		return real, err
	}
	parent, err := resolve(filepath.Dir(path))
	return filepath.Join(parent, filepath.Base(path)), err
}

func defaultDir(root bool) (string, error) {
	if root {
		return rootDir, nil
	}
	if state := os.Getenv("XDG_STATE_HOME"); filepath.IsAbs(state) {
		return filepath.Join(state, "vmsan"), nil
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return "", fmt.Errorf("find the home directory: %w", err)
	}
	return filepath.Join(home, ".local", "state", "vmsan"), nil
}

func runDir(dir string, root bool) string {
	if root {
		if standard, err := resolve(rootDir); err == nil && dir == standard {
			return "/run/vmsan"
		}
	}
	sum := sha256.Sum256([]byte(dir))
	name := "vmsan-" + hex.EncodeToString(sum[:6])
	if root {
		return filepath.Join("/run", name)
	}
	if run := os.Getenv("XDG_RUNTIME_DIR"); filepath.IsAbs(run) && len(run) < 48 {
		return filepath.Join(run, name)
	}
	return filepath.Join("/tmp", fmt.Sprintf("%s-%d", name, os.Geteuid()))
}

// entries are the names of what is directly in a state directory, and of what
// may be in one that is a file system's root.
func (l Layout) entries() (names []string) {
	for _, path := range []string{
		l.Lock(), l.SetupRecord(), l.SetupLock(), l.Events(), l.Releases(), l.Tmp(), l.Kernels(), l.Images(), l.ImageNames(),
		l.Blobs(), l.Pulled(""), l.Registries(), l.Runtimes(), l.Hooks(), l.Blanks(), l.Templates(), l.TemplateLog(),
		l.Snapshots(), l.Volumes(), l.Sandboxes(),
	} {
		names = append(names, filepath.Base(path))
	}
	return append(names, "lost+found")
}

// Filter is a running sandbox's own filter of system calls, if it has one.
func (l Layout) Filter(id string) string { return filepath.Join(l.SandboxRun(id), "filter") }

// Lock serializes the allocation of ids, names and slots.
func (l Layout) Lock() string { return filepath.Join(l.Dir, "lock") }

// SetupRecord is what the last setup found out and chose.
func (l Layout) SetupRecord() string { return filepath.Join(l.Dir, "setup.json") }

// SetupLock is held by a running setup.
func (l Layout) SetupLock() string { return filepath.Join(l.Dir, "setup.lock") }

// Reclaimed names the files of a sandbox that gave its memory back.
func (l Layout) Reclaimed(id string) Saved {
	return Saved{Memory: filepath.Join(l.Sandbox(id), "memory"), State: filepath.Join(l.Sandbox(id), "state")}
}

// Events is the journal's directory: two files for each of its books, and their
// lock.
func (l Layout) Events() string { return filepath.Join(l.Dir, "events") }

// Releases holds one directory per release of Firecracker.
func (l Layout) Releases() string { return filepath.Join(l.Dir, "firecracker") }

// Tmp holds files being made, on the file system they will be renamed within.
func (l Layout) Tmp() string { return filepath.Join(l.Dir, "tmp") }

// Kernels holds one directory per kernel.
func (l Layout) Kernels() string { return filepath.Join(l.Dir, "kernels") }

// Kernel is a kernel's directory: vmlinux, initramfs and kernel.json.
func (l Layout) Kernel(digest string) string { return filepath.Join(l.Kernels(), digest) }

// Images holds one directory per image, named by its digest.
func (l Layout) Images() string { return filepath.Join(l.Dir, "images") }

// Image is an image's directory: rootfs.ext4 and image.json.
func (l Layout) Image(digest string) string { return filepath.Join(l.Images(), digest) }

// ImageNames maps names to image digests.
func (l Layout) ImageNames() string { return filepath.Join(l.Dir, "images.json") }

// Blobs has the layers that were pulled, by their digests.
func (l Layout) Blobs() string { return filepath.Join(l.Dir, "blobs") }

// Pulled names the image that was made of the manifest with that digest.
func (l Layout) Pulled(digest string) string { return filepath.Join(l.Dir, "pulled", digest) }

// Registries says how registries are reached. The user writes it.
func (l Layout) Registries() string { return filepath.Join(l.Dir, "registries.json") }

// Runtimes says what images the names of runtimes stand for. The user writes
// it.
func (l Layout) Runtimes() string { return filepath.Join(l.Dir, "runtimes.json") }

// Hooks holds the user's executables that are told what happens to sandboxes:
// a directory NAME.d for each hook.
func (l Layout) Hooks() string { return filepath.Join(l.Dir, "hooks") }

// Blanks holds empty formatted disks.
func (l Layout) Blanks() string { return filepath.Join(l.Dir, "blanks") }

// Blank is an empty formatted disk of size bytes, copied for each new sandbox
// and volume. Its name changes with how disks are formatted.
func (l Layout) Blank(size int64) string {
	return filepath.Join(l.Blanks(), fmt.Sprintf("%d-2.ext4", size))
}

// Templates holds vmsan's own snapshots, as Snapshots does the user's.
func (l Layout) Templates() string { return filepath.Join(l.Dir, "templates") }

// IsTemplate tells whether a saved machine is one of the templates.
func (l Layout) IsTemplate(saved Saved) bool {
	return filepath.Dir(filepath.Dir(saved.Memory)) == l.Templates()
}

// TemplateLog is what the last making of a template had to say.
func (l Layout) TemplateLog() string { return filepath.Join(l.Dir, "templates.log") }

// TemplateLock is held while the template with that name is made.
func (l Layout) TemplateLock(name string) string { return filepath.Join(l.Run, name+".lock") }

// Snapshots holds one directory per snapshot, named by its id: manifest.json,
// memory, state and overlay.ext4.
func (l Layout) Snapshots() string { return filepath.Join(l.Dir, "snapshots") }

// Volumes holds one directory per volume, named like it: disk.ext4 and
// volume.json.
func (l Layout) Volumes() string { return filepath.Join(l.Dir, "volumes") }

// Sandboxes holds one directory per sandbox, named by its id.
func (l Layout) Sandboxes() string { return filepath.Join(l.Dir, "sandboxes") }

// Sandbox is a sandbox's directory; all its files are in it.
func (l Layout) Sandbox(id string) string { return filepath.Join(l.Sandboxes(), id) }

// Record is a sandbox's record.
func (l Layout) Record(id string) string { return filepath.Join(l.Sandbox(id), "record.json") }

// SandboxLock is held by a sandbox's monitor as proof of life.
func (l Layout) SandboxLock(id string) string { return filepath.Join(l.Sandbox(id), lockName) }

const lockName = "lock"

// Overlay is a sandbox's own writable disk.
func (l Layout) Overlay(id string) string { return filepath.Join(l.Sandbox(id), "overlay.ext4") }

// Console is what a sandbox wrote to its serial console, bounded.
func (l Layout) Console(id string) string { return filepath.Join(l.Sandbox(id), "console.log") }

// MonitorLog is what a sandbox's monitor, gate and VMM had to say.
func (l Layout) MonitorLog(id string) string { return filepath.Join(l.Sandbox(id), "monitor.log") }

// Index is where taken slots and names are noted, for this boot of the host.
func (l Layout) Index() string {
	boot, _, _ := strings.Cut(BootID(), "-")
	return filepath.Join(l.Run, "index-"+boot)
}

// NetworkLog is what a sandbox's network refused, and the names it asked for,
// bounded.
func (l Layout) NetworkLog(id string) string { return filepath.Join(l.Sandbox(id), "network.log") }

// SandboxRun is the directory of a running sandbox's sockets.
func (l Layout) SandboxRun(id string) string { return filepath.Join(l.Run, id) }

// ControlSocket is where a sandbox's monitor takes requests.
func (l Layout) ControlSocket(id string) string {
	return filepath.Join(l.SandboxRun(id), "control.sock")
}

// GuestSocket is where a sandbox's gate hands out streams to the guest.
func (l Layout) GuestSocket(id string) string {
	return filepath.Join(l.SandboxRun(id), "guest.sock")
}

// Stalled is there while a machine stands still because the host has no room for
// what its guest writes. It is beside the sockets, which are in memory: a
// record could not be written.
func (l Layout) Stalled(id string) string { return filepath.Join(l.SandboxRun(id), "stalled") }

// JailRoot is the mount point of a VMM's root file system, empty on the
// host's side: the mount exists in the VMM's mount namespace alone.
func (l Layout) JailRoot(id string) string { return filepath.Join(l.SandboxRun(id), "root") }
