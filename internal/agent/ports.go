package agent

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// uevents tells of devices as the kernel finds them (netlink(7),
// NETLINK_KOBJECT_UEVENT), so that waiting for one needs no polling. Most
// often nothing has to be waited for.
type uevents int

func listenUevents() (uevents, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, unix.NETLINK_KOBJECT_UEVENT)
	if err != nil {
		return 0, fmt.Errorf("open uevent socket: %w", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: 1}); err != nil {
		unix.Close(fd)
		return 0, fmt.Errorf("listen for uevents: %w", err)
	}
	return uevents(fd), nil
}

func (u uevents) close() { unix.Close(int(u)) }

// wait returns after the next event that names subsystem, or after any that
// might have been lost.
func (u uevents) wait(subsystem string) error {
	buf := make([]byte, 8<<10)
	for {
		n, _, err := unix.Recvfrom(int(u), buf, 0)
		switch {
		case errors.Is(err, unix.EINTR):
		case errors.Is(err, unix.ENOBUFS):
			return nil
		case err != nil:
			return fmt.Errorf("wait for %s device: %w", subsystem, err)
		case bytes.Contains(buf[:n], []byte("SUBSYSTEM="+subsystem)):
			return nil
		}
	}
}

// portPath finds the device of the virtio-serial port with that name, or ""
// if the kernel has not found it yet.
func portPath(name string) string {
	const class = "/sys/class/virtio-ports/"
	dir, err := os.Open(class)
	if err != nil {
		return ""
	}
	defer dir.Close()
	ports, _ := dir.Readdirnames(-1)
	for _, port := range ports {
		if got, err := os.ReadFile(class + port + "/name"); err == nil && strings.TrimSpace(string(got)) == name {
			return "/dev/" + port
		}
	}
	return ""
}

func openPort(name string) (*os.File, error) {
	var path string
	err := awaitDevice("virtio-ports", func() bool {
		path = portPath(name)
		return path != ""
	})
	if err != nil {
		return nil, err
	}
	return openBlocking(path)
}

// openBlocking opens a port outside the runtime's poller. Inside, the end of
// each write would wake a thread that waits there: half of the throughput
// goes that way under emulation.
func openBlocking(path string) (*os.File, error) {
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	return os.NewFile(uintptr(fd), path), nil
}

// awaitFile returns when path exists, which for a disk is soon after its
// driver is loaded.
func awaitFile(subsystem, path string) error {
	return awaitDevice(subsystem, func() bool {
		_, err := os.Stat(path)
		return err == nil
	})
}

// awaitDevice returns when there is a device of a subsystem that has to come.
func awaitDevice(subsystem string, there func() bool) error {
	if there() {
		return nil
	}
	events, err := listenUevents()
	if err != nil {
		return err
	}
	defer events.close()
	// It may have come before anybody listened.
	for !there() {
		if err := events.wait(subsystem); err != nil {
			return err
		}
	}
	return nil
}
