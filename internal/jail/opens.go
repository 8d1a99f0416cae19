package jail

import (
	"bytes"
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Some programs take a file by its path alone, and open it for writing where
// reading would do: QEMU, the one with a guest's memory. Answering that one
// system call with a file that is open already spares the jail the path, and
// the child the right to write (seccomp_unotify(2)). Nothing depends on the
// child's being caught: opening by itself fails like anything else outside
// of its root.

// opens answers a child that opens paths for reading and writing.
type opens struct {
	listener *os.File
	files    map[string]int // descriptors of its own
	longest  int            // of the paths, in bytes
	done     chan struct{}
}

// watchOpens has the calling thread, and what it forks, ask for each open for
// reading and writing.
func watchOpens(files map[string]*os.File) (*opens, error) {
	o := &opens{files: map[string]int{}, done: make(chan struct{})}
	for path, file := range files {
		fd, err := unix.FcntlInt(file.Fd(), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			o.closeFiles()
			return nil, fmt.Errorf("keep %s: %w", file.Name(), err)
		}
		o.files[path] = fd
		o.longest = max(o.longest, len(path))
	}
	fd, err := listen()
	if err != nil {
		o.closeFiles()
		return nil, fmt.Errorf("watch opens: %w", err)
	}
	o.listener = os.NewFile(uintptr(fd), "opens")
	go o.serve()
	return o, nil
}

// listen puts the filter over the calling thread.
func listen() (fd int, err error) {
	program := opensFilter()
	prog := unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]}
	listener, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER,
		unix.SECCOMP_FILTER_FLAG_NEW_LISTENER, uintptr(unsafe.Pointer(&prog)))
	if errno != 0 {
		return 0, errno
	}
	if err := unix.SetNonblock(int(listener), true); err != nil {
		unix.Close(int(listener))
		return 0, err
	}
	return int(listener), nil
}

// Offsets in struct seccomp_data; what is compared are the lower halves of
// numbers that are small.
const (
	dataNumber    = 0
	dataArch      = 4
	dataOpenFlags = 16 + 2*8
)

// opensFilter lets everything pass but openat(2) with O_RDWR.
func opensFilter() []unix.SockFilter {
	const (
		load    = unix.BPF_LD | unix.BPF_W | unix.BPF_ABS
		and     = unix.BPF_ALU | unix.BPF_AND | unix.BPF_K
		ifEqual = unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K
		end     = unix.BPF_RET | unix.BPF_K
	)
	return []unix.SockFilter{
		{Code: load, K: dataArch},
		{Code: ifEqual, K: auditArch, Jf: 5},
		{Code: load, K: dataNumber},
		{Code: ifEqual, K: unix.SYS_OPENAT, Jf: 3},
		{Code: load, K: dataOpenFlags},
		{Code: and, K: ^uint32(unix.O_CLOEXEC)},
		{Code: ifEqual, K: unix.O_RDWR, Jt: 1},
		{Code: end, K: unix.SECCOMP_RET_ALLOW},
		{Code: end, K: unix.SECCOMP_RET_USER_NOTIF},
	}
}

// notification is struct seccomp_notif, of an openat.
type notification struct {
	id     uint64
	pid    uint32
	flags  uint32
	number int32
	arch   uint32
	ip     uint64
	args   [6]uint64
}

// verdict is struct seccomp_notif_resp.
type verdict struct {
	id    uint64
	value int64
	error int32
	flags uint32
}

// gift is struct seccomp_notif_addfd.
type gift struct {
	id       uint64
	flags    uint32
	source   uint32
	target   uint32
	newFlags uint32
}

// serve answers until close or until nobody is left to ask.
func (o *opens) serve() {
	defer close(o.done)
	conn, err := o.listener.SyscallConn()
	if err != nil {
		return
	}
	for {
		var n notification
		var state int16
		// The poller waits, because receiving could not be broken off.
		err := conn.Read(func(fd uintptr) bool {
			if state = ready(fd); state&unix.POLLIN != 0 {
				n = notification{}
				ioctl(fd, unix.SECCOMP_IOCTL_NOTIF_RECV, unsafe.Pointer(&n))
			}
			return state != 0
		})
		if err != nil || state&unix.POLLIN == 0 {
			return
		}
		// One that gave up asking has the id 0.
		if n.id != 0 {
			conn.Control(func(fd uintptr) { o.answer(fd, n) })
		}
	}
}

func ready(fd uintptr) int16 {
	poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	if _, err := unix.Poll(poll, 0); err != nil {
		return 0
	}
	return poll[0].Revents
}

// answer hands the file over, or lets the kernel go on with an open of
// another path. A child that is gone by now needs no answer.
func (o *opens) answer(fd uintptr, n notification) {
	v := verdict{id: n.id, flags: unix.SECCOMP_USER_NOTIF_FLAG_CONTINUE}
	if file, ok := o.files[o.path(n)]; ok {
		g := gift{id: n.id, flags: unix.SECCOMP_ADDFD_FLAG_SEND, source: uint32(file), newFlags: unix.O_CLOEXEC}
		if errno := ioctl(fd, unix.SECCOMP_IOCTL_NOTIF_ADDFD, unsafe.Pointer(&g)); errno == 0 {
			return
		}
		v = verdict{id: n.id, error: -int32(unix.EMFILE)} // the child cannot have more
	}
	ioctl(fd, unix.SECCOMP_IOCTL_NOTIF_SEND, unsafe.Pointer(&v))
}

// path reads the path that is to be opened out of the child, or "" if it is
// longer than all that are of interest.
func (o *opens) path(n notification) string {
	text := make([]byte, o.longest+1)
	local := []unix.Iovec{{Base: &text[0], Len: uint64(len(text))}}
	remote := []unix.RemoteIovec{{Base: uintptr(n.args[1]), Len: len(text)}}
	got, err := unix.ProcessVMReadv(int(n.pid), local, remote, 0)
	if err != nil {
		return ""
	}
	path, _, ended := bytes.Cut(text[:got], []byte{0})
	if !ended {
		return ""
	}
	return string(path)
}

// close stops answering. Nil is fine.
func (o *opens) close() {
	if o == nil {
		return
	}
	o.listener.Close()
	<-o.done
	o.closeFiles()
}

func (o *opens) closeFiles() {
	for _, fd := range o.files {
		unix.Close(fd)
	}
}

func ioctl(fd, request uintptr, argument unsafe.Pointer) unix.Errno {
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, fd, request, uintptr(argument))
	return errno
}
