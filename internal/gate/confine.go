package gate

import (
	"fmt"

	seccomp "github.com/elastic/go-seccomp-bpf"
)

// allowed are the system calls of a Go program that reads and writes files
// it has, accepts connections, and runs threads. It can open nothing, make
// no socket, start no program and signal nobody else.
var allowed = []string{
	"read", "write", "readv", "writev", "pread64", "pwrite64", "lseek", "ftruncate", "fstat", "close",
	"accept4", "recvmsg", "recvfrom", "sendmsg", "sendto", "shutdown", "getsockopt", "setsockopt",
	"getsockname", "getpeername", "fcntl",
	"epoll_create1", "epoll_ctl", "epoll_pwait", "epoll_wait", "eventfd2", "pipe2", "splice",
	"mmap", "munmap", "mprotect", "madvise", "brk", "mincore",
	"futex", "clone", "clone3", "set_robust_list", "rseq", "gettid", "getpid", "tgkill",
	"sched_yield", "sched_getaffinity", "nanosleep", "clock_nanosleep", "clock_gettime", "gettimeofday",
	"rt_sigaction", "rt_sigprocmask", "rt_sigreturn", "sigaltstack", "timer_create", "timer_settime",
	"timer_delete", "setitimer", "restart_syscall", "getrandom", "prctl", "uname", "membarrier",
	"exit", "exit_group",
}

// confine gives up everything that reading a guest does not need. What is
// not allowed fails with EPERM, in all threads.
func confine() error {
	filter := seccomp.Filter{
		NoNewPrivs: true,
		Flag:       seccomp.FilterFlagTSync,
		Policy: seccomp.Policy{
			DefaultAction: seccomp.ActionErrno,
			Syscalls:      []seccomp.SyscallGroup{{Action: seccomp.ActionAllow, Names: known(allowed)}},
		},
	}
	if err := seccomp.LoadFilter(filter); err != nil {
		return fmt.Errorf("confine gate: %w", err)
	}
	return nil
}
