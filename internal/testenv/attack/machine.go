package attack

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// onMachine take as much as they can of what the machine has.
var onMachine = []attack{
	{"memory-hog", hogMemory},
	{"many-processes", manyProcesses},
	{"disk-full", fillDisk},
	{"disk-discards", discard},
	{"disk-syncs", syncStorm},
	{"image-written", writeImage},
	{"entropy-drain", drainEntropy},
	{"clock-jumps", jumpClock},
	{"hostile-names", hostileNames},
	{"deep-directories", deepDirectories},
}

// Pit is where the files of attacks are that the host copies.
const Pit = "/srv/pit"

// hogWord has a program take memory until it is killed.
const hogWord = "take-memory"

// hogMemory has a child take all memory there is, which the kernel then ends.
func hogMemory(ctx context.Context, args []string) (int, error) {
	if len(args) > 0 && args[0] == hogWord {
		if err := os.WriteFile("/proc/self/oom_score_adj", []byte("1000"), 0o644); err != nil {
			return 0, err
		}
		var hog [][]byte
		return repeat(context.Background(), func(int) error {
			piece := make([]byte, 1<<20)
			for at := 0; at < len(piece); at += 4096 {
				piece[at] = 1
			}
			hog = append(hog, piece)
			return nil
		})
	}
	child := exec.Command("/proc/self/exe", "1h", hogWord, "memory-hog")
	err := child.Run()
	var ended *exec.ExitError
	if !errors.As(err, &ended) {
		return 0, fmt.Errorf("took all memory and lived: %w", err)
	}
	return 1, nil
}

func manyProcesses(ctx context.Context, _ []string) (int, error) {
	var started []*os.Process
	defer func() {
		for _, p := range started {
			p.Kill()
			p.Wait()
		}
	}()
	const most = 500
	return repeat(ctx, func(i int) error {
		if i >= most {
			<-ctx.Done()
			return nil
		}
		p, err := os.StartProcess("/bin/sleep", []string{"sleep", "1h"}, &os.ProcAttr{})
		if err == nil {
			started = append(started, p)
		}
		return err
	})
}

// fillDisk writes what cannot be compressed until there is no room, and then
// takes it away.
func fillDisk(context.Context, []string) (n int, err error) {
	const path = "/srv/full"
	file, err := os.Create(path)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, file.Close(), os.Remove(path)) }()
	for piece := random(1 << 20); ; n++ {
		if _, err := file.Write(piece); errors.Is(err, unix.ENOSPC) {
			return n, nil
		} else if err != nil {
			return n, err
		}
	}
}

// discard has the host take back what it gave, again and again.
func discard(ctx context.Context, _ []string) (n int, err error) {
	file, err := os.Create("/srv/hole")
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, file.Close(), os.Remove(file.Name())) }()
	root, err := os.Open("/srv")
	if err != nil {
		return 0, err
	}
	defer root.Close()
	const size = 4 << 20
	piece := random(size)
	return repeat(ctx, func(int) error {
		if _, err := file.WriteAt(piece, 0); err != nil {
			return err
		}
		if err := file.Sync(); err != nil {
			return err
		}
		if err := unix.Fallocate(int(file.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 0, size); err != nil {
			return err
		}
		// FITRIM, which an overlay does not know: the disk's own may.
		whole := struct{ start, length, least uint64 }{length: 1<<64 - 1}
		_, _, _ = unix.Syscall(unix.SYS_IOCTL, root.Fd(), 0xc0185879, uintptr(unsafe.Pointer(&whole)))
		return nil
	})
}

func syncStorm(ctx context.Context, _ []string) (n int, err error) {
	file, err := os.Create("/srv/synced")
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, file.Close(), os.Remove(file.Name())) }()
	return repeat(ctx, func(i int) error {
		if _, err := file.WriteAt(random(512), int64(i%1000)*4096); err != nil {
			return err
		}
		return file.Sync()
	})
}

// writeImage writes to the disk with the image, which other sandboxes have too.
func writeImage(ctx context.Context, _ []string) (int, error) {
	const setReadOnly = 0x125d // BLKROSET
	return repeat(ctx, func(i int) error {
		disk, err := os.OpenFile("/dev/vda", os.O_RDWR|unix.O_SYNC, 0)
		if err != nil {
			return nil // refused
		}
		defer disk.Close()
		writable := int32(0)
		_, _, _ = unix.Syscall(unix.SYS_IOCTL, disk.Fd(), setReadOnly, uintptr(unsafe.Pointer(&writable)))
		if _, err := disk.WriteAt(random(4096), int64(i%1000)*4096); err == nil {
			return fmt.Errorf("the image was written to")
		}
		return nil
	})
}

func drainEntropy(ctx context.Context, _ []string) (int, error) {
	device, err := os.Open("/dev/hwrng")
	if err != nil {
		return 0, err
	}
	defer device.Close()
	buffer := make([]byte, 4096)
	return repeat(ctx, func(int) error {
		_, err := io.ReadFull(device, buffer)
		return err
	})
}

// jumpClock ends where it began.
func jumpClock(ctx context.Context, _ []string) (n int, err error) {
	began := time.Now()
	var before unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_REALTIME, &before); err != nil {
		return 0, err
	}
	defer func() {
		now := unix.NsecToTimespec(before.Nano() + time.Since(began).Nanoseconds())
		err = errors.Join(err, unix.ClockSettime(unix.CLOCK_REALTIME, &now))
	}()
	const y2100, y1971 = 4102444800, 31536000
	return repeat(ctx, func(i int) error {
		at := unix.Timespec{Sec: []int64{y2100, y1971}[i%2]}
		return unix.ClockSettime(unix.CLOCK_REALTIME, &at)
	})
}

// HostileNames are those of files that a shell, a terminal or a careless
// program would do something with.
var HostileNames = []string{
	Escapes, "..\\..\\etc", "-rf", "a\nb", " ", "$(reboot)", strings.Repeat("n", 255), "\xff\xfe", "C:", "...",
}

func hostileNames(context.Context, []string) (n int, err error) {
	dir := filepath.Join(Pit, "names")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return 0, err
	}
	for _, name := range HostileNames {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(name), 0o644); err != nil {
			return n, err
		}
		n++
	}
	// Ways out of a directory, and things that are no files.
	for name, target := range map[string]string{"out": "/etc/shadow", "up": "../../../../../../..", "self": "."} {
		if err := os.Symlink(target, filepath.Join(dir, name)); err != nil {
			return n, err
		}
		n++
	}
	for _, mode := range []uint32{unix.S_IFIFO, unix.S_IFCHR, unix.S_IFBLK, unix.S_IFSOCK} {
		if err := unix.Mknod(filepath.Join(dir, fmt.Sprint("node", mode)), mode|0o666, int(unix.Mkdev(1, 1))); err != nil {
			return n, err
		}
		n++
	}
	suid := filepath.Join(dir, "suid")
	if err := os.WriteFile(suid, nil, 0o755); err != nil {
		return n, err
	}
	return n + 1, unix.Chmod(suid, 0o6755)
}

// deepDirectories are deeper than a path can be long.
func deepDirectories(context.Context, []string) (n int, err error) {
	dir := filepath.Join(Pit, "deep")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return 0, err
	}
	if err := os.Chdir(dir); err != nil {
		return 0, err
	}
	const depth = 3000
	for ; n < depth; n++ {
		if err := unix.Mkdir("deeper", 0o755); err != nil {
			return n, err
		}
		if err := unix.Chdir("deeper"); err != nil {
			return n, err
		}
	}
	return n, nil
}
