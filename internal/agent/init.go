package agent

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmsan/vmsan/internal/link"
)

// publicPort, on the loopback address alone, is the guest's own way to the
// guest API, as the public contract has it.
const publicPort = 49983

// publicBacklog is how many connections wait for it at most.
const publicBacklog = 128

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
	m := &machine{log: log}
	defer func() {
		if r := recover(); r != nil {
			log.Error("agent panicked", "panic", r)
		}
		m.powerOff()
	}()
	if err := m.bringUp(); err != nil {
		log.Error("bring up guest", "error", err)
	}
}

// machine is the guest of an agent that is its PID 1.
type machine struct {
	log     *slog.Logger
	modules *modules
	// late are the modules that can wait.
	late []string
	// disk names the sandbox's own disk: a descriptor, because its mount is
	// out of sight. "" until there is one.
	disk string
}

// bringUp makes the root file system and serves the guest link.
func (m *machine) bringUp() error {
	signals := takeSignals()
	if err := mountAll(earlyMounts); err != nil {
		return err
	}
	resumeMonitor, err := delayMonitor()
	if err != nil {
		return err
	}
	if m.modules, err = openModules(); err != nil {
		return err
	}
	if m.late, err = m.modules.loadEarly(); err != nil {
		return err
	}
	// The kernel's talk with the host about the ports takes a while, in which
	// the root is made.
	disk, rootErr := -1, error(nil)
	if !hasWord(probeWord) {
		disk, rootErr = enterRoot()
	}
	openPort := openPort
	if m.modules.vsock {
		openPort = link.ListenVsock
	}
	control, err := openPort(link.ControlPort)
	if err != nil {
		return errors.Join(rootErr, err)
	}
	if rootErr != nil {
		return failed(control, rootErr)
	}
	data, err := openPort(link.DataPort)
	if err != nil {
		return failed(control, err)
	}
	if disk >= 0 {
		m.disk = descriptorPath(disk)
	}
	if err := resumeMonitor(); err != nil {
		return failed(control, err)
	}
	if path := imageInit(); path != "" {
		return failed(control, m.becomeInit(path, control, data, disk))
	}
	go m.obey(signals)
	loadLate := sync.OnceFunc(m.loadLate)
	return Serve(control, data, Config{
		Logger: m.log, ReapOrphans: true, PowerOff: m.end, DiskMount: m.disk,
		Configured: sync.OnceFunc(func() { time.AfterFunc(lateDelay, loadLate) }),
		Settle:     loadLate,
	})
}

// lateDelay is from the host's word of who the guest is to the loading of
// what can wait: so long that the first command is not slowed down.
const lateDelay = 2 * time.Second

func (m *machine) loadLate() {
	for _, name := range m.late {
		if err := m.modules.load(name); err != nil {
			m.log.Error("load modules", "error", err)
		}
	}
	if err := m.modules.close(); err != nil {
		m.log.Error("remove modules", "error", err)
	}
}

// descriptorPath names what a descriptor of this process is open on.
func descriptorPath(fd int) string { return fmt.Sprintf("/proc/self/fd/%d", fd) }

// failed tells the host why there will be no guest.
func failed(control *os.File, reason error) error {
	if err := link.Fail(link.GuestPort(control), reason); err != nil {
		return errors.Join(reason, err)
	}
	// Let the host read it before the power goes.
	time.Sleep(100 * time.Millisecond)
	return reason
}

// enterRoot returns a descriptor of the sandbox's disk, which is out of sight
// in the new root.
func enterRoot() (disk int, err error) {
	for _, path := range []string{"/dev/vda", "/dev/vdb"} {
		if err := awaitFile("block", path); err != nil {
			return 0, err
		}
	}
	if disk, err = mountRoot(); err != nil {
		return 0, err
	}
	if err := mountAll(lateMounts); err != nil {
		return 0, err
	}
	if err := linkDevices(); err != nil {
		return 0, err
	}
	return disk, loopbackUp()
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
	return linkUp(fd, "lo")
}

// Words that the host puts on the kernel's command line.
const (
	// initWord is followed by the path of the image's init, to be PID 1.
	initWord = "vmsan.init="
	// probeWord is for a guest without disks, which only has to answer.
	probeWord = "vmsan.probe"
	// ephemeralWord is for a guest whose own disk is thrown away when it
	// ends.
	ephemeralWord = "vmsan.ephemeral"
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

// Serve answers the host on the guest link, whose ports link.GuestPort opens,
// and the guest on its loopback address, until the link ends. The host is told
// last that there is a guest: then what it asks for finds everything ready.
func Serve(control, data *os.File, config Config) error {
	a := New(config)
	public, err := listenPublic()
	if err != nil {
		return fmt.Errorf("listen for the guest's own requests: %w", err)
	}
	host := link.Listen(link.GuestPort(control), link.GuestPort(data), self{a})
	defer host.Close()
	go func() {
		if err := a.servePublic(public); err != nil {
			a.config.Logger.Error("serve the guest's own requests", "error", err)
		}
	}()
	return a.ServeHost(host)
}

// listenPublic takes the guest's own connections into the kernel's backlog.
// Package net would take 40 ms of a boot under emulation for it.
func listenPublic() (fd int, err error) {
	fd, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
		return 0, err
	}
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}, Port: publicPort}); err != nil {
		return 0, err
	}
	return fd, unix.Listen(fd, publicBacklog)
}

// servePublic begins when the first connection is there, which in many
// guests never comes.
func (a *Agent) servePublic(fd int) error {
	awaitInput(fd)
	file := os.NewFile(uintptr(fd), "public")
	listener, err := net.FileListener(file)
	file.Close()
	if err != nil {
		return err
	}
	return http.Serve(listener, a.PublicHandler())
}
