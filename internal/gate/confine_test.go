package gate

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmsan/vmsan/internal/testenv"
)

// confinedVar makes the test binary a confined process that tries what it
// must not be able to do.
const confinedVar = "VMSAN_TEST_GATE_CONFINED"

func TestMain(m *testing.M) {
	if os.Getenv(confinedVar) != "" {
		beConfined()
	}
	os.Exit(testenv.Main(m))
}

// forbidden are things that a gate must not be able to do, with what each
// says when nothing forbids it.
var forbidden = []struct {
	name string
	try  func() error
}{
	{"open a file", func() error { return closing(unix.Open("/etc/passwd", unix.O_RDONLY, 0)) }},
	{"openat", func() error { return closing(unix.Openat(unix.AT_FDCWD, "/", unix.O_RDONLY, 0)) }},
	{"openat2", func() error { return closing(unix.Openat2(unix.AT_FDCWD, "/", &unix.OpenHow{})) }},
	{"read a link", func() error { _, err := unix.Readlink("/proc/self/exe", make([]byte, 64)); return err }},
	{"make a socket", func() error { return closing(unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)) }},
	{"make a netlink socket", func() error { return closing(unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW, 0)) }},
	{"connect", func() error { return unix.Connect(1, &unix.SockaddrUnix{Name: "/run/none"}) }},
	{"start a program", func() error { return unix.Exec("/nowhere", []string{"x"}, nil) }},
	{"fork", func() error { return call(unix.SYS_CLONE, uintptr(unix.SIGCHLD)|unix.CLONE_NEWUSER, 0, 0) }},
	{"clone3", func() error { return call(unix.SYS_CLONE3, 0, 0, 0) }},
	{"make a namespace", func() error { return unix.Unshare(unix.CLONE_NEWUSER) }},
	{"signal its parent", func() error { return unix.Kill(os.Getppid(), 0) }},
	{"signal another process", func() error { return call(unix.SYS_TGKILL, uintptr(os.Getppid()), uintptr(os.Getppid()), 0) }},
	{"trace", func() error { return call(unix.SYS_PTRACE, unix.PTRACE_TRACEME, 0, 0) }},
	{"read another's memory", func() error { return call(unix.SYS_PROCESS_VM_READV, 1, 0, 0) }},
	{"load a program into the kernel", func() error { return call(unix.SYS_BPF, 0, 0, 0) }},
	{"io_uring", func() error { return call(unix.SYS_IO_URING_SETUP, 1, 0, 0) }},
	{"userfaultfd", func() error { return call(unix.SYS_USERFAULTFD, 0, 0, 0) }},
	{"keyring", func() error { return call(unix.SYS_KEYCTL, 0, 0, 0) }},
	{"mount", func() error { return unix.Mount("none", "/", "tmpfs", 0, "") }},
	{"prctl", func() error { return unix.Prctl(unix.PR_SET_DUMPABLE, 1, 0, 0, 0) }},
	{"drop the filter", func() error { return call(unix.SYS_SECCOMP, 0, 0, 0) }},
	{"map new code", func() error {
		_, err := unix.Mmap(-1, 0, 4096, unix.PROT_READ|unix.PROT_EXEC, unix.MAP_ANON|unix.MAP_PRIVATE)
		return err
	}},
	{"a system call of another ABI", func() error { return call(1<<30|unix.SYS_GETPID, 0, 0, 0) }},
}

func closing(fd int, err error) error {
	if err == nil {
		unix.Close(fd)
	}
	return err
}

func call(number, a, b, c uintptr) error {
	if _, _, errno := syscall.Syscall(number, a, b, c); errno != 0 {
		return errno
	}
	return nil
}

// beConfined prints, for each forbidden thing, how trying it failed, and then
// shows that what a gate does still works.
func beConfined() {
	if err := confine(false); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	for _, f := range forbidden {
		fmt.Printf("%s: %v\n", f.name, f.try())
	}
	var threads sync.WaitGroup
	for range 20 {
		threads.Go(func() {
			// A thread each, with memory to collect.
			unix.Nanosleep(&unix.Timespec{Nsec: 1e6}, nil)
			_ = bytes.Repeat([]byte("x"), 1<<20)
		})
	}
	threads.Wait()
	r, w, err := os.Pipe()
	if err == nil {
		time.AfterFunc(time.Millisecond, func() { w.Write([]byte("through the poller")) })
		text := make([]byte, 18)
		_, err = r.Read(text)
		fmt.Println(string(text), err)
	}
	os.Exit(0)
}

func TestConfine(t *testing.T) {
	confined := exec.Command("/proc/self/exe")
	confined.Env = append(os.Environ(), confinedVar+"=1")
	out, err := confined.CombinedOutput()
	if err != nil {
		t.Errorf("the confined process: %v", err)
	}
	for _, f := range forbidden {
		refused := strings.Contains(string(out), f.name+": operation not permitted\n")
		if unknown := strings.Contains(string(out), f.name+": function not implemented\n"); !refused && !unknown {
			t.Errorf("not forbidden: %s", f.name)
		}
	}
	if !strings.Contains(string(out), "through the poller <nil>\n") {
		t.Error("what a gate does for a living is forbidden too")
	}
	if t.Failed() {
		t.Logf("the confined process says:\n%.4000s", out)
	}
}
