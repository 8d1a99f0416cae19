package gate

import (
	"fmt"
	"os"
	"slices"

	seccomp "github.com/elastic/go-seccomp-bpf"
	"golang.org/x/sys/unix"
)

// allowed are the system calls of a Go program that reads and writes files
// it has, accepts connections, and runs threads. It can open nothing, make
// no socket, start no program and signal nobody else.
var allowed = []string{
	"read", "write", "readv", "writev", "pread64", "pwrite64", "lseek", "ftruncate", "fstat", "close",
	"accept4", "recvmsg", "recvfrom", "sendmsg", "sendto", "shutdown", "getsockopt", "setsockopt",
	"getsockname", "getpeername", "fcntl",
	"epoll_create1", "epoll_ctl", "epoll_pwait", "epoll_wait", "eventfd2", "pipe2", "splice",
	"munmap", "madvise", "brk", "mincore",
	"futex", "set_robust_list", "rseq", "gettid", "getpid",
	"sched_yield", "sched_getaffinity", "nanosleep", "clock_nanosleep", "clock_gettime", "gettimeofday",
	"rt_sigaction", "rt_sigprocmask", "rt_sigreturn", "sigaltstack", "timer_create", "timer_settime",
	"timer_delete", "setitimer", "restart_syscall", "getrandom", "uname", "membarrier",
	"exit", "exit_group",
}

// newNamespaces are the flags of clone(2) that make a namespace, which would
// open parts of the kernel that an unprivileged user does not reach else.
const newNamespaces = unix.CLONE_NEWCGROUP | unix.CLONE_NEWIPC | unix.CLONE_NEWNET | unix.CLONE_NEWNS |
	unix.CLONE_NEWPID | unix.CLONE_NEWUSER | unix.CLONE_NEWUTS

// unknown is the answer to clone3, whose flags are in memory where a filter
// cannot read them: C libraries take it for an older kernel and use clone.
const unknown = seccomp.ActionErrno&^0xffff | seccomp.Action(unix.ENOSYS)

// allowedIf are system calls that are allowed with some arguments.
func allowedIf() []seccomp.NameWithConditions {
	is := func(name string, argument uint32, operation seccomp.Operation, value uint64) seccomp.NameWithConditions {
		return seccomp.NameWithConditions{Name: name, Conditions: seccomp.ArgumentConditions{
			{Argument: argument, Operation: operation, Value: value},
		}}
	}
	return []seccomp.NameWithConditions{
		is("clone", 0, seccomp.BitsNotSet, newNamespaces),
		is("tgkill", 0, seccomp.Equal, uint64(os.Getpid())),
		// No new code.
		is("mmap", 2, seccomp.BitsNotSet, unix.PROT_EXEC),
		is("mprotect", 2, seccomp.BitsNotSet, unix.PROT_EXEC),
	}
}

// networkIf are what the gate of a sandbox with a network needs besides: it
// connects to servers that a name leads to and to the guest's ports, by IPv4,
// from within the sandbox's network.
func networkIf() []seccomp.NameWithConditions {
	return []seccomp.NameWithConditions{{Name: "socket", Conditions: seccomp.ArgumentConditions{
		{Argument: 0, Operation: seccomp.Equal, Value: unix.AF_INET},
	}}}
}

// confine gives up everything that reading a guest does not need. What is
// not allowed fails with EPERM, in all threads.
func confine(networked bool) error {
	names, conditional := allowed, allowedIf()
	if networked {
		names, conditional = append(slices.Clone(allowed), "connect"), append(conditional, networkIf()...)
	}
	filter := seccomp.Filter{
		NoNewPrivs: true,
		Flag:       seccomp.FilterFlagTSync,
		Policy: seccomp.Policy{
			DefaultAction: seccomp.ActionErrno,
			Syscalls: []seccomp.SyscallGroup{
				{Action: seccomp.ActionAllow, Names: known(names), NamesWithCondtions: conditional},
				{Action: unknown, Names: []string{"clone3"}},
			},
		},
	}
	if err := seccomp.LoadFilter(filter); err != nil {
		return fmt.Errorf("confine gate: %w", err)
	}
	return nil
}
