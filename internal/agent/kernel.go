package agent

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Kernel is what the host's calls need of the kernel, apart from files. Tests put something else there.
type Kernel interface {
	Release() (string, error)
	SetTime(to time.Time) error
	SetHostname(name string) error
	// AddEntropy mixes in, credits every bit, and reseeds.
	AddEntropy(entropy []byte) error
	// SetNetwork gives the first network device an address, brings it up, and makes gateway the way to all others.
	SetNetwork(address netip.Prefix, gateway netip.Addr) error
	// ResetConnections ends all TCP connections but those within the guest, as if the other side had.
	ResetConnections() error
	// Cover mounts the file source over target, in the place of one mounted there before.
	Cover(source, target string) error
	// Freeze blocks writes to the filesystem path is on; Thaw lets them go on. Both may be called twice.
	Freeze(path string) error
	Thaw(path string) error
	// MountVolume mounts the ext4 on a block device at target. One that was never mounted before takes the
	// owner and permissions of what it covers.
	MountVolume(device, target string, readOnly bool) error
	// Grow makes the ext4 mounted at mount as large as its block device, once that has least bytes, and
	// returns its size in bytes. An empty device is looked for.
	Grow(mount, device string, least uint64) (uint64, error)
}

// linux is the real Kernel.
type linux struct{}

func (linux) Release() (string, error) {
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return "", err
	}
	return unix.ByteSliceToString(name.Release[:]), nil
}

func (linux) SetTime(to time.Time) error {
	spec, err := unix.TimeToTimespec(to)
	if err != nil {
		return err
	}
	return unix.ClockSettime(unix.CLOCK_REALTIME, &spec)
}

func (linux) SetHostname(name string) error {
	return unix.Sethostname([]byte(name))
}

// Numbers of include/uapi/linux/random.h and fs/ext4, which package unix lacks.
const (
	rndAddEntropy  = 0x40085203 // _IOW('R', 3, int[2])
	rndReseedCRNG  = 0x5207     // _IO('R', 7)
	ext4ResizeFS   = 0x40086610 // _IOW('f', 16, __u64)
	fiFreeze       = 0xc0045877 // _IOWR('X', 119, int)
	fiThaw         = 0xc0045878 // _IOWR('X', 120, int)
	ext4SuperMagic = 0xef53
)

func (linux) AddEntropy(entropy []byte) error {
	device, err := os.OpenFile("/dev/urandom", os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer device.Close()
	// struct rand_pool_info: the count in bits, the size in bytes, the bytes.
	info := make([]uint32, 2+(len(entropy)+3)/4)
	info[0], info[1] = uint32(len(entropy)*8), uint32(len(entropy))
	copy(unsafe.Slice((*byte)(unsafe.Pointer(&info[2])), len(entropy)), entropy)
	if err := ioctl(device, rndAddEntropy, unsafe.Pointer(&info[0])); err != nil {
		return fmt.Errorf("add entropy: %w", err)
	}
	// The kernel would reseed by itself within minutes; two clones must not draw the same bytes until then.
	if err := ioctl(device, rndReseedCRNG, nil); err != nil {
		return fmt.Errorf("reseed: %w", err)
	}
	return nil
}

func (linux) Cover(source, target string) error {
	// EINVAL: nothing is mounted there yet.
	if err := unix.Unmount(target, unix.MNT_DETACH); err != nil && err != unix.EINVAL {
		return fmt.Errorf("unmount %s: %w", target, err)
	}
	if err := unix.Mount(source, target, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("mount over %s: %w", target, err)
	}
	return unix.Mount("", target, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, "")
}

func (linux) Freeze(path string) error {
	err := ioctlPath(path, fiFreeze)
	if err == unix.EBUSY { // frozen already
		return nil
	}
	return err
}

func (linux) Thaw(path string) error {
	err := ioctlPath(path, fiThaw)
	if err == unix.EINVAL { // not frozen
		return nil
	}
	return err
}

func ioctlPath(path string, request uintptr) error {
	directory, err := os.Open(path)
	if err != nil {
		return err
	}
	defer directory.Close()
	return ioctl(directory, request, nil)
}

func ioctl(file *os.File, request uintptr, argument unsafe.Pointer) error {
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, file.Fd(), request, uintptr(argument))
	if errno != 0 {
		return errno
	}
	return nil
}

func (linux) Grow(mount, device string, least uint64) (uint64, error) {
	var stat unix.Statfs_t
	if err := unix.Statfs(mount, &stat); err != nil {
		return 0, err
	}
	if stat.Type != ext4SuperMagic {
		return 0, fmt.Errorf("filesystem of type %#x is not ext4", stat.Type)
	}
	if device == "" {
		found, err := deviceOf(mount)
		if err != nil {
			return 0, err
		}
		device = found
	}
	size, err := awaitSize(device, least)
	if err != nil {
		return 0, err
	}
	directory, err := os.Open(mount)
	if err != nil {
		return 0, err
	}
	defer directory.Close()
	blocks := size / uint64(stat.Bsize)
	if err := ioctl(directory, ext4ResizeFS, unsafe.Pointer(&blocks)); err != nil {
		return 0, fmt.Errorf("resize to %d blocks of %d bytes: %w", blocks, stat.Bsize, err)
	}
	return blocks * uint64(stat.Bsize), nil
}

// deviceOf names the block device a mount is on by what sysfs calls its number.
func deviceOf(mount string) (string, error) {
	var stat unix.Stat_t
	if err := unix.Stat(mount, &stat); err != nil {
		return "", err
	}
	number := strconv.Itoa(int(unix.Major(stat.Dev))) + ":" + strconv.Itoa(int(unix.Minor(stat.Dev)))
	link, err := os.Readlink("/sys/dev/block/" + number)
	if err != nil {
		return "", fmt.Errorf("find block device %s: %w", number, err)
	}
	return "/dev/" + filepath.Base(link), nil
}

// sizeTime is how long the kernel may take to hear of a disk's new size: an interrupt and a work queue.
const sizeTime = 5 * time.Second

// awaitSize returns the size of a block device when it is least bytes.
func awaitSize(device string, least uint64) (uint64, error) {
	for deadline := time.Now().Add(sizeTime); ; time.Sleep(time.Millisecond) {
		size, err := deviceSize(device)
		if err != nil || size >= least {
			return size, err
		}
		if time.Now().After(deadline) {
			return 0, fmt.Errorf("%s has %d bytes and not the %d that it was to have", device, size, least)
		}
	}
}

func deviceSize(path string) (uint64, error) {
	device, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer device.Close()
	size, err := device.Seek(0, 2)
	if err != nil {
		return 0, err
	}
	if size <= 0 {
		return 0, errors.New(path + " has no size")
	}
	return uint64(size), nil
}
