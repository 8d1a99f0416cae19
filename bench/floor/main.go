// Command floor is the init of the machine that vmsan is measured against: it
// does nothing that a boot does not need. It writes one byte to the console,
// and then answers one-byte requests on the data port with as little work as
// there can be.
package main

import (
	"bufio"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmsan/vmsan/bench/floor/request"
)

func main() {
	os.Stdout.Write([]byte{request.Booted})
	os.Stderr.WriteString("floor: " + serve().Error() + "\n")
	unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART)
	select {}
}

// serve answers requests until something fails.
func serve() error {
	for _, m := range [][3]string{{"devtmpfs", "/dev", "devtmpfs"}, {"proc", "/proc", "proc"}, {"sysfs", "/sys", "sysfs"}} {
		if err := unix.Mount(m[0], m[1], m[2], 0, ""); err != nil {
			return err
		}
	}
	if err := loadModules(); err != nil {
		return err
	}
	if err := os.MkdirAll("/mnt", 0o755); err != nil {
		return err
	}
	if err := retry(func() error { return unix.Mount("/dev/vda", "/mnt", "ext4", unix.MS_RDONLY, "") }); err != nil {
		return err
	}
	var port *os.File
	err := retry(func() (err error) {
		names, _ := filepath.Glob("/sys/class/virtio-ports/*/name")
		err = os.ErrNotExist
		for _, name := range names {
			if text, _ := os.ReadFile(name); strings.TrimSpace(string(text)) == "vmsan.data" {
				port, err = openBlocking("/dev/" + filepath.Base(filepath.Dir(name)))
			}
		}
		return err
	})
	if err != nil {
		return err
	}
	return answer(port)
}

// openBlocking keeps the port out of the runtime's poller, which every write's
// completion would wake.
func openBlocking(path string) (*os.File, error) {
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), path), nil
}

func loadModules() error {
	list, err := os.Open("/modules/load.txt")
	if err != nil {
		return err
	}
	lines := bufio.NewScanner(list)
	for lines.Scan() {
		path := lines.Text()
		if !filepath.IsAbs(path) {
			path = filepath.Join("/modules", path)
		}
		module, err := os.Open(path)
		if err != nil {
			return err
		}
		if err := unix.FinitModule(int(module.Fd()), "", 0); err != nil {
			return err
		}
		module.Close()
	}
	return lines.Err()
}

func retry(f func() error) (err error) {
	for range 5000 {
		if err = f(); err == nil {
			return nil
		}
		time.Sleep(time.Millisecond)
	}
	return err
}

func answer(port *os.File) error {
	what := make([]byte, 1)
	zeros := make([]byte, request.Chunk)
	for {
		n, err := port.Read(what)
		if n == 0 || err != nil {
			// The host's end is not connected yet (port_fops_read).
			time.Sleep(time.Millisecond)
			continue
		}
		switch what[0] {
		case request.Echo:
			port.Write(what)
		case request.Spawn:
			cmd := exec.Command("/bin/true")
			cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: "/mnt"}
			if err := cmd.Run(); err != nil {
				return err
			}
			port.Write(what)
		case request.Produce:
			cmd := exec.Command(request.Producer[0], request.Producer[1:]...)
			cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: "/mnt"}
			cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, port, os.Stderr
			if err := cmd.Run(); err != nil {
				return err
			}
		case request.Sink:
			for taken := 0; taken < request.DumpBytes; {
				n, err := port.Read(zeros[:min(len(zeros), request.DumpBytes-taken)])
				if err != nil {
					return err
				}
				taken += n
			}
			port.Write(what)
		case request.Dump:
			for sent := 0; sent < request.DumpBytes; sent += len(zeros) {
				if _, err := port.Write(zeros); err != nil {
					return err
				}
			}
		}
	}
}
