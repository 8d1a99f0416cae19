package agent

import (
	"os"
	"os/signal"
	"strconv"
	"sync"
	"syscall"
)

// reaper starts processes and collects their ends. PID 1 must also reap orphans it never started, with
// wait4(-1), which would steal the status from any other waiter: so every process the agent starts goes
// through here, and none through os/exec.
type reaper struct {
	orphans bool   // reap every child, not just those started here
	onReap  func() // called after an orphan was reaped; may be nil
	signals chan os.Signal
	quit    chan struct{}
	done    chan struct{}

	shielded bool // see Config; not changed after the first start

	mu       sync.Mutex
	started  map[int]chan syscall.WaitStatus
	starting int // calls to start between fork and registration
	// early holds ends seen while a start was under way: a quick child may be gone before it is registered.
	early map[int]syscall.WaitStatus
}

// newReaper starts reaping. With orphans it takes every child's end: for PID 1 and subreapers only.
func newReaper(orphans bool, onReap func()) *reaper {
	r := &reaper{
		orphans: orphans,
		onReap:  onReap,
		signals: make(chan os.Signal, 1),
		quit:    make(chan struct{}),
		done:    make(chan struct{}),
		started: map[int]chan syscall.WaitStatus{},
		early:   map[int]syscall.WaitStatus{},
	}
	signal.Notify(r.signals, syscall.SIGCHLD)
	go r.loop()
	return r
}

// stop ends the reaping. Processes still running are left alone and never reported.
func (r *reaper) stop() {
	signal.Stop(r.signals)
	close(r.quit)
	<-r.done
}

// start runs a program and returns its pid and the channel its end arrives on, exactly once.
func (r *reaper) start(path string, argv []string, attr *syscall.ProcAttr) (int, <-chan syscall.WaitStatus, error) {
	r.mu.Lock()
	r.starting++
	r.mu.Unlock()
	// Not under the lock: exec may wait for a slow filesystem, and other ends must not wait for it.
	pid, err := syscall.ForkExec(path, argv, attr)
	if err == nil && r.shielded {
		// It fails for a process that has ended, and then matters to nobody.
		os.WriteFile(scoreFile(strconv.Itoa(pid)), []byte("0"), 0)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.starting--
	ended := make(chan syscall.WaitStatus, 1)
	if err == nil {
		r.register(pid, ended)
	}
	if r.starting == 0 {
		clear(r.early)
	}
	return pid, ended, err
}

// register is called with the lock held.
func (r *reaper) register(pid int, ended chan syscall.WaitStatus) {
	if status, ok := r.early[pid]; ok {
		delete(r.early, pid)
		ended <- status
		return
	}
	r.started[pid] = ended
	if !r.orphans {
		// Its SIGCHLD may have come and gone before it was in the map.
		r.collect(pid)
	}
}

// signal sends a signal to a process started here, and to no other that has got its number since.
// It returns ESRCH once the process was reaped.
func (r *reaper) signal(pid int, number syscall.Signal) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, ok := r.started[pid]; !ok {
		return syscall.ESRCH
	}
	return syscall.Kill(pid, number)
}

func (r *reaper) loop() {
	defer close(r.done)
	for {
		select {
		case <-r.quit:
			return
		case <-r.signals:
			r.reap()
		}
	}
}

// reap collects all that has ended. One SIGCHLD may stand for many ends.
func (r *reaper) reap() {
	r.mu.Lock()
	orphan := false
	if r.orphans {
		for pid := r.collect(-1); pid > 0; pid = r.collect(-1) {
			orphan = true
		}
	} else {
		for pid := range r.started {
			r.collect(pid)
		}
	}
	r.mu.Unlock()
	if orphan && r.onReap != nil {
		r.onReap()
	}
}

// collect reaps one child, hands its end over, and returns its pid, or 0 if none has ended.
// It is called with the lock held, so that signal never meets a pid that was reaped but not yet forgotten.
func (r *reaper) collect(which int) int {
	var status syscall.WaitStatus
	pid, err := syscall.Wait4(which, &status, syscall.WNOHANG, nil)
	for err == syscall.EINTR {
		pid, err = syscall.Wait4(which, &status, syscall.WNOHANG, nil)
	}
	if err != nil || pid <= 0 {
		return 0
	}
	if ended, ok := r.started[pid]; ok {
		delete(r.started, pid)
		ended <- status
	} else if r.starting > 0 {
		r.early[pid] = status
	}
	return pid
}
