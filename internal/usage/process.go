package usage

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Process is what a process of the host takes, with all its threads.
type Process struct {
	CPU time.Duration // since it was started
	RSS int64         // bytes of memory that it has mapped
	// PSS has of pages that several processes map each one's share.
	PSS int64
	// Read and Written are bytes that it had the disks read and write. What was
	// in the page cache was not read.
	Read, Written int64
	// Private is true if the kernel does not tell this user all: PSS, Read
	// and Written are missing.
	Private bool
}

// Add adds what another process takes.
func (p *Process) Add(o Process) {
	p.CPU += o.CPU
	p.RSS += o.RSS
	p.PSS += o.PSS
	p.Read += o.Read
	p.Written += o.Written
	p.Private = p.Private || o.Private
}

// OfProcess measures the process pid; see proc(5). The error is fs.ErrNotExist
// if it has ended.
//
// It parses three files itself: packages that read all of /proc compile dozens
// of patterns when a program starts, whatever it then does.
func OfProcess(pid int) (p Process, err error) {
	dir := "/proc/" + strconv.Itoa(pid) + "/"
	stat, err := os.ReadFile(dir + "stat")
	if err == nil {
		err = p.parseStat(string(stat))
	}
	if err == nil {
		err = p.readPrivate(dir)
	}
	if errors.Is(err, unix.ESRCH) {
		err = fs.ErrNotExist
	}
	if err != nil {
		return Process{}, fmt.Errorf("measure process %d: %w", pid, err)
	}
	return p, nil
}

func (p *Process) readPrivate(dir string) error {
	rollup, err := os.ReadFile(dir + "smaps_rollup")
	var io []byte
	if err == nil {
		io, err = os.ReadFile(dir + "io")
	}
	switch {
	case errors.Is(err, fs.ErrPermission):
		p.Private = true
		return nil
	case err != nil:
		return err
	}
	p.PSS = field(string(rollup), "Pss:") << 10
	p.Read, p.Written = field(string(io), "read_bytes:"), field(string(io), "write_bytes:")
	return nil
}

// ticks is how many a second has in /proc (USER_HZ), on all architectures of
// ours.
const ticks = 100

// statFields are those of a stat from the third on, which is the state. The
// second is the program's name, which may hold anything.
func statFields(text string) []string {
	return strings.Fields(text[strings.LastIndexByte(text, ')')+1:])
}

// parseStat reads utime and stime, which are fields 14 and 15, and rss in pages,
// which is 24.
func (p *Process) parseStat(text string) error {
	fields := statFields(text)
	const first = 3
	if len(fields) <= 24-first {
		return fmt.Errorf("its stat has %d fields", len(fields)+first-1)
	}
	var values [3]int64
	for i, n := range []int{14, 15, 24} {
		v, err := strconv.ParseInt(fields[n-first], 10, 64)
		if err != nil {
			return fmt.Errorf("field %d of its stat: %w", n, err)
		}
		values[i] = v
	}
	p.CPU = time.Duration(values[0]+values[1]) * time.Second / ticks
	p.RSS = values[2] * int64(os.Getpagesize())
	return nil
}

// field returns the number behind a name at the beginning of a line, or 0.
func field(text, name string) int64 {
	for line := range strings.Lines(text) {
		if rest, ok := strings.CutPrefix(line, name); ok {
			fields := strings.Fields(rest)
			if len(fields) > 0 {
				n, _ := strconv.ParseInt(fields[0], 10, 64)
				return n
			}
		}
	}
	return 0
}
