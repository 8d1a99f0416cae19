package agent

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmsan/vmsan/internal/link"
)

// serveArg is how the agent calls itself when the image's own init is about
// to take its place as PID 1.
const serveArg = "serve"

// The descriptors of the agent beside the image's init.
const (
	besideControl = 3 + iota
	besideData
	besideDisk
	besideConfigured
)

// identityLimit is how long the image's init waits for the host to say who
// the guest is. Only a host that died in between does not.
const identityLimit = 10 * time.Second

// becomeInit makes the image's init PID 1 and leaves an agent running beside
// it. The init starts when the host has configured the guest: systemd reads
// hostname and machine id once, at its beginning. It returns only on error.
func (m *machine) becomeInit(path string, control, data *os.File, disk int) error {
	if err := tryExec(path); err != nil {
		return fmt.Errorf("run the image's init: %w", err)
	}
	if err := hideConsoleLogin(); err != nil {
		return err
	}
	if err := startBeside(control, data, disk); err != nil {
		return fmt.Errorf("start agent beside the image's init: %w", err)
	}
	m.loadLate()
	env := []string{"PATH=" + defaultPath, "HOME=/", "TERM=linux"}
	return fmt.Errorf("run the image's init: exec %s: %w", path, unix.Exec(path, []string{path}, env))
}

// startBeside returns when the agent beside has been configured.
func startBeside(control, data *os.File, disk int) error {
	configured, theirs, err := os.Pipe()
	if err != nil {
		return err
	}
	defer configured.Close()
	_, err = os.StartProcess("/proc/self/exe", []string{"vmsan-agent", serveArg}, &os.ProcAttr{
		Files: []*os.File{nil, os.Stdout, os.Stderr, control, data, os.NewFile(uintptr(disk), "disk"), theirs},
		Sys:   &unix.SysProcAttr{Setsid: true},
	})
	theirs.Close()
	if err != nil {
		return err
	}
	configured.SetReadDeadline(time.Now().Add(identityLimit))
	// Nothing is written: it ends when the agent beside closes it.
	configured.Read(make([]byte, 1))
	return nil
}

// tryExec finds out whether path can be executed while the host can still be
// told: of a traced child the kernel runs no instruction after its exec.
func tryExec(path string) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	child, err := os.StartProcess(path, []string{path}, &os.ProcAttr{Sys: &unix.SysProcAttr{Ptrace: true}})
	if err != nil {
		return err
	}
	if err := child.Kill(); err != nil {
		return err
	}
	_, err = child.Wait()
	return err
}

// hideConsoleLogin keeps systemd from waiting 90 s for udev, which small
// images lack, to announce the serial port, only to let nobody log in there.
// Other inits do not look at it.
func hideConsoleLogin() error {
	const mask = "/run/systemd/system/serial-getty@ttyS0.service"
	if err := os.MkdirAll(filepath.Dir(mask), 0o755); err != nil {
		return err
	}
	return os.Symlink(os.DevNull, mask)
}

// serveBeside is the agent that becomeInit left behind.
func serveBeside(log *slog.Logger) error {
	control := os.NewFile(besideControl, link.ControlPort)
	data := os.NewFile(besideData, link.DataPort)
	unix.CloseOnExec(besideControl)
	unix.CloseOnExec(besideData)
	unix.CloseOnExec(besideDisk)
	unix.CloseOnExec(besideConfigured)
	// A PID 1 is never killed for want of memory, and so this one, without which nobody reaches the guest, is not.
	shield := os.WriteFile(scoreFile("self"), []byte("-1000"), 0)
	if shield != nil {
		log.Warn("keep the agent from being killed for want of memory", "error", shield)
	}
	return Serve(control, data, Config{
		Logger: log, Shielded: shield == nil, PowerOff: askInit, DiskMount: descriptorPath(besideDisk),
		Configured: sync.OnceFunc(func() { unix.Close(besideConfigured) }),
	})
}

// scoreFile says how much the kernel spares a process when memory runs out:
// proc_pid_oom_score_adj(5).
func scoreFile(pid string) string { return "/proc/" + pid + "/oom_score_adj" }
