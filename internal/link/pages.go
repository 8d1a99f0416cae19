package link

import (
	"io"
	"os"
	"runtime"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A virtio-serial port gives the guest one buffer a read, which is a page, and
// then gives the buffer back to the VMM (drivers/char/virtio_console.c,
// fill_readbuf). A guest that waits for each page is interrupted for it, and its
// buffer's return wakes the VMM: under emulation that costs several times what
// the bytes do. So one that gets page after page lets some come together, of
// which the VMM says nothing as long as none is read (VIRTIO_F_EVENT_IDX).

const (
	pageSize = 4 << 10
	// busyPages whole pages in a row are a stream.
	busyPages = 8
	// busyPause is less than the VMM takes to fill all of the port's buffers.
	busyPause = 500 * time.Microsecond
)

// pagePort is the guest's end of a port, for one reader.
type pagePort struct {
	file *os.File
	raw  syscall.RawConn
	full int // pages in a row

	// What more works on, which is made once.
	poll   [1]unix.PollFd
	noTime unix.Timespec
	buffer []byte
	n      int
	rest   func(fd uintptr)
}

// newPagePort reads other things than files as they are.
func newPagePort(port io.Reader) io.Reader {
	file, ok := port.(*os.File)
	if !ok {
		return port
	}
	raw, err := file.SyscallConn()
	if err != nil {
		return port
	}
	p := &pagePort{file: file, raw: raw}
	p.rest = p.readRest
	return p
}

// Read returns as many pages as there are.
func (p *pagePort) Read(b []byte) (int, error) {
	n := 0
	if p.full >= busyPages {
		n = p.more(b)
		if n == 0 {
			n = p.pause(b)
		}
	}
	if n > 0 {
		return n, nil
	}
	n, err := p.file.Read(b)
	if n < pageSize {
		p.full = 0
	} else {
		p.full++
	}
	return n, err
}

// pause has others work on what came last, and then waits for more.
func (p *pagePort) pause(b []byte) int {
	runtime.Gosched()
	if n := p.more(b); n > 0 {
		return n
	}
	// A timer of the runtime's costs more than this system call.
	spec := unix.NsecToTimespec(busyPause.Nanoseconds())
	_ = unix.Nanosleep(&spec, nil)
	n := p.more(b)
	if n < pageSize {
		p.full = 0
	}
	return n
}

// more reads what there is without waiting.
func (p *pagePort) more(b []byte) int {
	p.buffer, p.n = b, 0
	if p.raw.Control(p.rest) != nil {
		return 0 // which reading it tells
	}
	return p.n
}

// readRest makes system calls that the runtime does not hear of, as none of them
// waits.
func (p *pagePort) readRest(fd uintptr) {
	for p.n < len(p.buffer) {
		p.poll[0] = unix.PollFd{Fd: int32(fd), Events: unix.POLLIN}
		ready, _, _ := unix.RawSyscall6(unix.SYS_PPOLL, uintptr(unsafe.Pointer(&p.poll[0])), 1, uintptr(unsafe.Pointer(&p.noTime)), 0, 0, 0)
		// With POLLHUP it says that the host's end is closed, and a read might wait.
		if ready != 1 || p.poll[0].Revents != unix.POLLIN {
			return
		}
		left := p.buffer[p.n:]
		n, _, failed := unix.RawSyscall(unix.SYS_READ, fd, uintptr(unsafe.Pointer(&left[0])), uintptr(len(left)))
		if failed != 0 || n == 0 {
			return
		}
		p.n += int(n)
	}
}
