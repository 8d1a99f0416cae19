package jail

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

// A program that sheds its own rights loses its parent-death signal with them
// (prctl(2), PR_SET_PDEATHSIG), and would outlive its parent. So the first
// process of its namespace is one that keeps the signal and does nothing: when
// that ends, the kernel ends all others in it (pid_namespaces(7)).

// idleAddress is where the program is loaded.
const idleAddress = 0x400000

// idleProgram is an ELF file that waits for ever.
func idleProgram() []byte {
	const headers = 64 + 56 // bytes, of the two below
	size := uint64(headers + binary.Size(idleCode))
	var b bytes.Buffer
	for _, part := range []any{
		elf.Header64{
			Ident: [elf.EI_NIDENT]byte{0x7f, 'E', 'L', 'F', byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), byte(elf.EV_CURRENT)},
			Type:  uint16(elf.ET_EXEC), Machine: uint16(idleMachine), Version: uint32(elf.EV_CURRENT),
			Entry: idleAddress + headers, Phoff: 64, Ehsize: 64, Phentsize: 56, Phnum: 1,
		},
		elf.Prog64{
			Type: uint32(elf.PT_LOAD), Flags: uint32(elf.PF_R | elf.PF_X), Vaddr: idleAddress,
			Filesz: size, Memsz: size, Align: 0x1000,
		},
		idleCode,
	} {
		binary.Write(&b, binary.LittleEndian, part) // a buffer takes all
	}
	return b.Bytes()
}

// idleFile returns the program as a file that is in no directory any more. dir
// is on a file system that programs can be run from.
func idleFile(dir string) (*os.File, error) {
	path := filepath.Join(dir, "idle")
	// A process that was forked meanwhile would have it open for writing, and
	// then it cannot be run.
	syscall.ForkLock.RLock()
	err := os.WriteFile(path, idleProgram(), 0o500)
	syscall.ForkLock.RUnlock()
	if err != nil {
		return nil, err
	}
	file, err := os.Open(path)
	return file, errors.Join(err, os.Remove(path))
}

// startIdle starts a process that does nothing, in a new namespace of processes, without
// rights, for as long as this one lives.
func (s Spec) startIdle() (*Process, error) {
	file, err := idleFile(s.Tree.Mount)
	if err != nil {
		return nil, fmt.Errorf("make first process: %w", err)
	}
	defer file.Close()
	// The child gets the file as its first one, because the caller's number
	// for it may be taken for another file between fork and exec
	// (syscall.forkAndExecInChild1).
	return Start(Spec{
		Path: "/proc/self/fd/3", Files: []*os.File{file},
		Namespaces: unix.CLONE_NEWPID, Cgroup: s.Cgroup,
	})
}

// enterPIDs has the calling thread's children born in p's process namespace.
func (p *Process) enterPIDs() error {
	namespace, err := os.Open(fmt.Sprintf("/proc/%d/ns/pid", p.PID()))
	if err != nil {
		return err
	}
	defer namespace.Close()
	if err := unix.Setns(int(namespace.Fd()), unix.CLONE_NEWPID); err != nil {
		return fmt.Errorf("enter process namespace: %w", err)
	}
	return nil
}

// end kills the process and waits for it.
func (p *Process) end() error {
	err := p.Kill()
	<-p.Done()
	return err
}
