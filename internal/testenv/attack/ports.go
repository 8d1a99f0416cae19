package attack

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/vmsan/vmsan/internal/link"
)

// onPorts are floods of what leads to the host: the console, and the agent's
// two ports, which are taken from it.
var onPorts = []attack{
	{"console-flood", func(ctx context.Context, _ []string) (int, error) {
		return flood(ctx, consolePath, bytes.Repeat([]byte("flood of the console\n"), 200))
	}},
	{"console-one-line", func(ctx context.Context, _ []string) (int, error) {
		return flood(ctx, consolePath, bytes.Repeat([]byte("x"), 4096))
	}},
	{"console-escapes", func(ctx context.Context, _ []string) (int, error) {
		return flood(ctx, consolePath, []byte(Escapes+"\n"))
	}},
	{"kernel-log-flood", floodKernelLog},
	{"control-flood", func(ctx context.Context, _ []string) (int, error) {
		return floodPort(ctx, link.ControlPort, bytes.Repeat([]byte("reset x\nidentity y\ntime 7\n"), 100))
	}},
	{"control-one-line", func(ctx context.Context, _ []string) (int, error) {
		return floodPort(ctx, link.ControlPort, bytes.Repeat([]byte("timed "), 2000))
	}},
	{"control-false-time", func(ctx context.Context, _ []string) (int, error) {
		return floodPort(ctx, link.ControlPort, bytes.Repeat([]byte("\ntimed \n"), 500))
	}},
	{"frames-without-data", func(ctx context.Context, _ []string) (int, error) {
		return floodPort(ctx, link.DataPort, bytes.Repeat(frame(frameData, nobody, 0), 3000))
	}},
	{"frames-for-nobody", func(ctx context.Context, _ []string) (int, error) {
		const body = 16 << 10
		return floodPort(ctx, link.DataPort, append(frame(frameData, nobody, body), make([]byte, body)...))
	}},
	{"frames-of-room", func(ctx context.Context, _ []string) (int, error) {
		return floodPort(ctx, link.DataPort, bytes.Repeat(frame(frameRoom, nobody, 1<<31), 3000))
	}},
	{"frames-of-ends", func(ctx context.Context, _ []string) (int, error) {
		both := append(frame(frameEnd, nobody, 0), frame(frameGone, nobody, 0)...)
		return floodPort(ctx, link.DataPort, bytes.Repeat(both, 1500))
	}},
	{"ports-opened-again", openPorts},
}

// Escapes are what a terminal obeys.
const Escapes = "\x1b[2J\x1b]0;renamed\x07\x1b[31m\xc2\x9b31m\x9b31m\r\x1bc"

const consolePath = "/dev/console"

// The kinds of frames of the link (internal/link), and a stream that nobody
// has opened.
const (
	frameOpen byte = iota + 1
	frameData
	frameRoom
	frameEnd
	frameGone

	nobody = 0xfffffff0
)

func frame(kind byte, stream, length uint32) []byte {
	header := binary.BigEndian.AppendUint32([]byte{kind}, stream)
	return binary.BigEndian.AppendUint32(header, length)
}

func flood(ctx context.Context, path string, text []byte) (int, error) {
	file, err := os.OpenFile(path, os.O_WRONLY|unix.O_NOCTTY, 0)
	if err != nil {
		return 0, err
	}
	defer file.Close()
	return repeat(ctx, func(int) error {
		_, err := file.Write(text)
		return err
	})
}

// floodKernelLog has the kernel print all that it is told on the console.
func floodKernelLog(ctx context.Context, _ []string) (int, error) {
	if err := os.WriteFile("/proc/sys/kernel/printk", []byte("8 8 1 8"), 0o644); err != nil {
		return 0, err
	}
	defer os.WriteFile("/proc/sys/kernel/printk", []byte("4 4 1 7"), 0o644)
	return flood(ctx, "/dev/kmsg", append([]byte("<0>"), bytes.Repeat([]byte("y"), 800)...))
}

// takePort takes a port of the guest link from the process that has it: the
// kernel lets nobody open it twice.
func takePort(name string) (*os.File, error) {
	device, err := portDevice(name)
	if err != nil {
		return nil, err
	}
	found, err := filepath.Glob("/proc/[0-9]*/fd/*")
	if err != nil {
		return nil, err
	}
	for _, path := range found {
		if to, err := os.Readlink(path); err != nil || to != device {
			continue
		}
		var pid, fd int
		if _, err := fmt.Sscanf(path, "/proc/%d/fd/%d", &pid, &fd); err != nil {
			return nil, err
		}
		process, err := unix.PidfdOpen(pid, 0)
		if err != nil {
			return nil, fmt.Errorf("open process %d: %w", pid, err)
		}
		defer unix.Close(process)
		stolen, err := unix.PidfdGetfd(process, fd, 0)
		if err != nil {
			return nil, fmt.Errorf("take %s of process %d: %w", device, pid, err)
		}
		return os.NewFile(uintptr(stolen), name), nil
	}
	return nil, fmt.Errorf("nobody has %s open", device)
}

// portDevice is the path of the port with a name.
func portDevice(name string) (string, error) {
	files, err := filepath.Glob("/sys/class/virtio-ports/*/name")
	if err != nil {
		return "", err
	}
	for _, path := range files {
		if text, err := os.ReadFile(path); err == nil && strings.TrimSpace(string(text)) == name {
			return "/dev/" + filepath.Base(filepath.Dir(path)), nil
		}
	}
	return "", fmt.Errorf("there is no port %s", name)
}

// taken are the ports once they were taken: to find them takes a while.
var taken = map[string]func() (*os.File, error){
	link.ControlPort: sync.OnceValues(func() (*os.File, error) { return takePort(link.ControlPort) }),
	link.DataPort:    sync.OnceValues(func() (*os.File, error) { return takePort(link.DataPort) }),
}

// floodPort writes to a port as much at once as the kernel lets through whole,
// so that what the agent says meanwhile stays whole as well.
func floodPort(ctx context.Context, name string, text []byte) (int, error) {
	port, err := taken[name]()
	if err != nil {
		return 0, err
	}
	return repeat(ctx, func(int) error {
		_, err := port.Write(text)
		return err
	})
}

func openPorts(ctx context.Context, _ []string) (int, error) {
	return repeat(ctx, func(i int) error {
		device, err := portDevice([]string{link.ControlPort, link.DataPort}[i%2])
		if err != nil {
			return err
		}
		file, err := os.OpenFile(device, os.O_RDWR, 0)
		if err == nil {
			file.Close()
			return fmt.Errorf("%s could be opened twice", device)
		}
		if !errors.Is(err, unix.EBUSY) {
			return err
		}
		return nil
	})
}

func random(n int) []byte {
	b := make([]byte, n)
	rand.Read(b)
	return b
}
