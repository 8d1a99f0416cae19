package qemu

import (
	"errors"
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// deadTap returns a tap device that is connected to nothing, in a network
// namespace that ends with it. QEMU has no other back end for a network
// device that takes the state of one on a tap.
func deadTap() (tap *os.File, err error) {
	runtime.LockOSThread()
	// A thread that cannot come back must not be used again: it stays locked.
	here, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return nil, fmt.Errorf("make tap: %w", err)
	}
	defer here.Close()
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		runtime.UnlockOSThread()
		return nil, fmt.Errorf("make tap: new network namespace: %w", err)
	}
	tap, err = openTap()
	if backErr := unix.Setns(int(here.Fd()), unix.CLONE_NEWNET); backErr != nil {
		return nil, errors.Join(err, fmt.Errorf("leave the tap's network namespace: %w", backErr))
	}
	runtime.UnlockOSThread()
	return tap, err
}

func openTap() (*os.File, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open /dev/net/tun: %w", err)
	}
	request, err := unix.NewIfreq("tap%d")
	if err != nil {
		return nil, err
	}
	request.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, request); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("make tap: %w", err)
	}
	return os.NewFile(uintptr(fd), "tap"), nil
}
