package agent

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmsan/vmsan/internal/link"
)

// serveArg is how the agent calls itself when the image's own init has
// taken its place as PID 1.
const serveArg = "serve"

// publicAddress is the guest's own way to the guest API (guest-api.md of the
// E2B contract: port 49983, loopback only).
const publicAddress = "127.0.0.1:49983"

// Main is the agent: as PID 1 it brings the guest up and serves until the
// guest is powered off; it never returns there. Called with "serve" it is
// the agent beside the image's own init.
func Main(args []string) int {
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	switch {
	case os.Getpid() == 1:
		runInit(log)
	case len(args) > 1 && args[1] == serveArg:
		if err := serveBeside(log); err != nil {
			log.Error("serve guest API", "error", err)
			return 1
		}
	default:
		fmt.Fprintln(os.Stderr, "vmsan-agent runs inside a vmsan sandbox, as its init")
		return 2
	}
	return 0
}

// runInit is PID 1. It must not return or exit: the kernel would panic.
func runInit(log *slog.Logger) {
	defer func() {
		if r := recover(); r != nil {
			log.Error("agent panicked", "panic", r)
		}
		powerOff()
	}()
	if err := bringUp(log); err != nil {
		log.Error("bring up guest", "error", err)
	}
}

// bringUp makes the root file system and serves the guest link.
func bringUp(log *slog.Logger) error {
	if err := mountAll(earlyMounts); err != nil {
		return err
	}
	events, err := listenUevents()
	if err != nil {
		return err
	}
	if err := loadModules(); err != nil {
		return err
	}
	control, err := openPort(events, link.ControlPort)
	if err != nil {
		return err
	}
	data, err := openPort(events, link.DataPort)
	if err != nil {
		return err
	}
	if hasWord(probeWord) {
		return serve(control, data, Config{Logger: log, ReapOrphans: true, PowerOff: resetMachine})
	}
	if err := enterRoot(events); err != nil {
		return failed(control, err)
	}
	events.close()
	if path := imageInit(); path != "" {
		return failed(control, execInit(path, control, data))
	}
	return serve(control, data, Config{Logger: log, ReapOrphans: true, PowerOff: resetMachine})
}

// serveBeside is the agent that execInit left behind.
func serveBeside(log *slog.Logger) error {
	control, err := inheritPort(3)
	if err != nil {
		return err
	}
	data, err := inheritPort(4)
	if err != nil {
		return err
	}
	return serve(control, data, Config{Logger: log, PowerOff: askInit})
}

// inheritPort takes over a file that the parent opened. It shares the file
// description, so it has to be told again not to block: only then does the
// runtime wait for it in its poller.
func inheritPort(fd int) (*os.File, error) {
	if err := unix.SetNonblock(fd, true); err != nil {
		return nil, fmt.Errorf("take over guest link: %w", err)
	}
	unix.CloseOnExec(fd)
	return os.NewFile(uintptr(fd), link.DataPort), nil
}

// failed tells the host why there will be no guest.
func failed(control io.Writer, reason error) error {
	if err := link.Fail(control, reason); err != nil {
		return errors.Join(reason, err)
	}
	// Let the host read it before the power goes.
	time.Sleep(100 * time.Millisecond)
	return reason
}

func enterRoot(events uevents) error {
	for _, disk := range []string{"/dev/vda", "/dev/vdb"} {
		if err := waitForFile(events, "block", disk); err != nil {
			return err
		}
	}
	if err := mountRoot(); err != nil {
		return err
	}
	if err := mountAll(lateMounts); err != nil {
		return err
	}
	if err := linkDevices(); err != nil {
		return err
	}
	return loopbackUp()
}

// linkDevices makes the links that programs expect in /dev and that udev
// would make (Linux Standard Base, and systemd's src/shared/dev-setup.c).
func linkDevices() error {
	for name, target := range map[string]string{
		"/dev/fd": "/proc/self/fd", "/dev/stdin": "/proc/self/fd/0",
		"/dev/stdout": "/proc/self/fd/1", "/dev/stderr": "/proc/self/fd/2",
	} {
		if err := os.Symlink(target, name); err != nil && !errors.Is(err, os.ErrExist) {
			return err
		}
	}
	return nil
}

func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open socket: %w", err)
	}
	defer unix.Close(fd)
	lo, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	lo.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, lo); err != nil {
		return fmt.Errorf("set loopback up: %w", err)
	}
	return nil
}

// Words that the host puts on the kernel's command line.
const (
	// initWord is followed by the path of the image's init, to be PID 1.
	initWord = "vmsan.init="
	// probeWord is for a guest without disks, which only has to answer.
	probeWord = "vmsan.probe"
)

func cmdline() []string {
	line, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return nil
	}
	return strings.Fields(string(line))
}

func hasWord(word string) bool { return slices.Contains(cmdline(), word) }

// imageInit is the init of the image that the host asked for, or "".
func imageInit() string {
	for _, word := range cmdline() {
		if path, ok := strings.CutPrefix(word, initWord); ok {
			return path
		}
	}
	return ""
}

// execInit makes the image's init PID 1 and leaves the agent running beside
// it, with the ports.
func execInit(path string, control, data *os.File) error {
	if _, err := os.Stat(path); err != nil {
		return fmt.Errorf("find the image's init: %w", err)
	}
	_, err := os.StartProcess("/proc/self/exe", []string{"vmsan-agent", serveArg}, &os.ProcAttr{
		Files: []*os.File{nil, os.Stdout, os.Stderr, control, data},
		Sys:   &unix.SysProcAttr{Setsid: true},
	})
	if err != nil {
		return fmt.Errorf("start agent beside the image's init: %w", err)
	}
	env := []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "container=vmsan", "TERM=linux"}
	return fmt.Errorf("run %s: %w", path, unix.Exec(path, []string{path}, env))
}

// serve answers the host on the guest link and the guest on its loopback
// address, until the link ends.
func serve(control, data *os.File, config Config) error {
	a := New(config)
	public, err := net.Listen("tcp", publicAddress)
	if err != nil {
		return failed(control, fmt.Errorf("listen for the guest's own requests: %w", err))
	}
	go http.Serve(public, a.PublicHandler())
	host := link.Listen(control, data)
	defer host.Close()
	return http.Serve(host, a.HostHandler())
}
