package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/creack/pty"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/vmsan/vmsan/internal/guest/proto/process"
)

// command is what to start, resolved and checked.
type command struct {
	config  *process.ProcessConfig // as asked for
	path    string
	argv    []string
	env     []string
	cwd     string
	account account
	tag     *string
	size    *pty.Winsize // nil without a terminal
	stdin   bool         // a pipe, else /dev/null
	keep    bool
	limit   time.Duration // 0: none
}

// running is one process the agent started, from then until it is forgotten.
type running struct {
	command command
	pid     int
	started time.Time
	tree    tree
	output  output
	starter follower // of the stream that started it
	reaper  *reaper

	terminal *os.File // nil without one
	input    *os.File // stdin's pipe or the terminal; nil for /dev/null

	// writing is held by whoever writes input; a channel, so that waiting for it can be given up.
	writing chan struct{}

	timedOut atomic.Bool
	ended    chan struct{} // closed after end and endedAt are set and all output is with the followers
	end      *process.ProcessEvent_EndEvent
	endedAt  time.Time
}

// launch starts a command. Its output waits in its pipes until begin is called.
func (a *Agent) launch(c command) (*running, error) {
	r := &running{
		command: c,
		reaper:  a.reaper,
		started: time.Now(),
		writing: make(chan struct{}, 1),
		ended:   make(chan struct{}),
	}
	if c.keep {
		kept, err := newRecording(a.config.KeepDirectory, a.config.KeepBytes)
		if err != nil {
			return nil, err
		}
		r.output.kept = kept
	}
	files, err := openEnds(c)
	if err != nil {
		r.discard()
		return nil, err
	}
	r.terminal, r.input = files.terminal, files.input
	exited, err := a.fork(r, files)
	files.closeChild()
	if err != nil {
		files.closeOwn()
		r.discard()
		return nil, err
	}
	r.starter = r.output.starter()
	a.table.add(r)
	a.attending.Go(func() { a.attend(r, files.outputs, exited) })
	return r, nil
}

func (r *running) discard() {
	if r.output.kept != nil {
		r.output.kept.close()
	}
}

// fork makes the process, in a session and a tree of its own.
func (a *Agent) fork(r *running, files *ends) (<-chan syscall.WaitStatus, error) {
	attr := &syscall.SysProcAttr{Setsid: true, Credential: r.command.account.credential()}
	if r.terminal != nil {
		attr.Setctty = true // of descriptor 0
	}
	defer a.forest.begin()()
	tree, err := a.forest.plant(attr)
	if err != nil {
		return nil, err
	}
	pid, exited, err := a.reaper.start(r.command.path, r.command.argv, &syscall.ProcAttr{
		Dir:   r.command.cwd,
		Env:   r.command.env,
		Files: files.child[:],
		Sys:   attr,
	})
	tree.root(pid)
	if err != nil {
		tree.fell()
		return nil, &startError{command: r.command, cause: err}
	}
	r.pid, r.tree = pid, tree
	return exited, nil
}

// startError is what the kernel said to starting a command.
type startError struct {
	command command
	cause   error
}

func (e *startError) Error() string {
	return fmt.Sprintf("start %s: %v", e.command.config.GetCmd(), e.cause)
}

func (e *startError) Unwrap() error { return e.cause }

// attend sees a process to its end.
func (a *Agent) attend(r *running, outputs []outputEnd, exited <-chan syscall.WaitStatus) {
	var limit *time.Timer
	if r.command.limit > 0 {
		limit = time.AfterFunc(r.command.limit, r.expire)
	}
	readers, drained := r.pump(outputs)
	status := <-exited
	if limit != nil {
		limit.Stop()
	}
	for _, reader := range readers {
		<-reader.commandEnded()
	}
	awaitOutput(drained)
	r.output.finish()
	r.end = endEvent(status, r.timedOut.Load())
	r.endedAt = time.Now()
	a.table.end(r)
	close(r.ended)
	// Whoever waits for the end goes first: the kernel takes long to remove a cgroup.
	runtime.Gosched()
	r.closeInput()
	r.tree.fell()
}

func (r *running) expire() {
	r.timedOut.Store(true)
	// The process is gone, or its cgroup is: nothing is left to be told.
	_ = r.tree.signal(syscall.SIGKILL)
}

// awaitOutput gives children that end with the command their time, but does not wait for what others, left
// in the background, may write one day.
func awaitOutput(drained <-chan struct{}) {
	select {
	case <-drained:
		return
	default:
	}
	grace := time.NewTimer(outputGrace)
	defer grace.Stop()
	select {
	case <-drained:
	case <-grace.C:
	}
}

// outputEnd is the end of a pipe, or of a terminal, that is read here.
type outputEnd struct {
	from source
	file *os.File
}

// pump reads every output to its end, and closes drained then. Also after the end of the process: a child
// that lives on must not die of a broken pipe.
func (r *running) pump(outputs []outputEnd) (readers []*outputReader, drained <-chan struct{}) {
	done := make(chan struct{})
	left := atomic.Int32{}
	left.Store(int32(len(outputs)))
	for _, out := range outputs {
		reader := newOutputReader(out)
		readers = append(readers, reader)
		go func() {
			r.read(reader)
			if left.Add(-1) == 0 {
				close(done)
			}
		}()
	}
	return readers, done
}

func (r *running) read(out *outputReader) {
	if out.from != terminal {
		defer func() { out.file.Close() }() // which may be another one by then
	}
	defer out.caughtUp()
	buffer := chunks.Get().(*[]byte)
	defer chunks.Put(buffer)
	for {
		out.pause()
		if out.move(&r.output) {
			continue
		}
		// An error is io.EOF from a pipe, EIO from a terminal nobody has open, ErrClosed from one closed here.
		n, err := out.read((*buffer)[headroom:])
		if n > 0 {
			r.output.deliver(out.from, chunk{buffer: *buffer, n: n})
			out.handedOver(n)
		}
		if err != nil {
			return
		}
	}
}

// defaultPipeSize is that of Linux with pages of 4 KiB. A command that fills it is worth a larger pipe;
// the others are spared the call.
const defaultPipeSize = 64 << 10

// A command that writes a lot, 4 or 8 KiB at a time, and a reader that is as fast would wake one another for
// each piece: on one emulated CPU that costs far more than the bytes. After busyReads pieces in a row of
// busyBytes or more the reader looks only every busyPause, while a larger pipe takes what is written.
const (
	busyBytes = 4 << 10
	busyReads = 4
	busyPause = 2 * time.Millisecond
)

// outputReader reads a pipe, waiting between reads from one that is busy. It knows when all that the
// command itself has written was handed over, however slow the client: then the command may be said to
// have ended, even if a child holds the pipe open.
type outputReader struct {
	outputEnd
	busy  int // reads in a row of busyBytes or more
	grown bool
	last  int  // bytes
	moved bool // last, and not read
	// steady is true once file is no longer in the runtime's poller.
	steady bool

	mu       sync.Mutex
	taken    int64 // bytes out of the pipe
	handed   int64 // bytes handed over
	wanted   int64 // bytes the command has written; until it has ended, more than any can
	moving   bool  // some of what was taken is still in the pipe
	over     bool  // the command has ended
	complete chan struct{}
	once     sync.Once
}

func newOutputReader(end outputEnd) *outputReader {
	return &outputReader{
		outputEnd: end,
		grown:     end.from == terminal, // which has no size to set
		wanted:    math.MaxInt64,
		complete:  make(chan struct{}),
	}
}

func (o *outputReader) read(buffer []byte) (int, error) {
	n, err := o.take(buffer)
	o.note(n)
	o.moved = false
	return n, err
}

// pause lets a busy command fill its pipe.
func (o *outputReader) pause() {
	if o.busy >= busyReads && (o.moved || o.last < defaultPipeSize) {
		// A timer of the runtime's costs more than this system call.
		spec := unix.NsecToTimespec(busyPause.Nanoseconds())
		_ = unix.Nanosleep(&spec, nil)
	}
}

// move hands over what is in a busy pipe without reading it, if that can be done.
func (o *outputReader) move(to *output) bool {
	if !o.steady || !to.moves() {
		return false
	}
	there := o.unread()
	if there == 0 {
		o.awaitInput()
		there = o.unread()
	}
	if there < busyBytes {
		return false
	}
	o.begin()
	n := to.move(o.from, o.file)
	o.finish(n)
	if n == 0 {
		return false
	}
	o.note(n)
	o.moved = true
	return true
}

func (o *outputReader) awaitInput() {
	raw, err := o.file.SyscallConn()
	if err != nil {
		return // which reading will tell
	}
	raw.Control(func(fd uintptr) { awaitInput(int(fd)) })
}

// begin and finish are around a move, which commandEnded must not count twice.
func (o *outputReader) begin() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.moving = true
}

func (o *outputReader) finish(n int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.moving = false
	o.taken += int64(n)
	o.handed += int64(n)
	o.expect()
}

// take is a read that commandEnded sees either all of or nothing.
func (o *outputReader) take(buffer []byte) (n int, err error) {
	raw, err := o.file.SyscallConn()
	if err != nil {
		return 0, err
	}
	var readErr error
	err = raw.Read(func(fd uintptr) bool {
		n, readErr = o.takeFrom(int(fd), buffer)
		for o.steady && readErr == syscall.EAGAIN {
			awaitInput(int(fd))
			n, readErr = o.takeFrom(int(fd), buffer)
		}
		return readErr != syscall.EAGAIN
	})
	switch {
	case err != nil || readErr == syscall.EINTR:
		return n, err
	case readErr == nil && n == 0:
		return 0, io.EOF
	}
	return n, readErr
}

func (o *outputReader) takeFrom(fd int, buffer []byte) (n int, err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	n, err = syscall.Read(fd, buffer)
	n = max(n, 0)
	o.taken += int64(n)
	return n, err
}

// awaitInput blocks the thread until fd can be read; an error shows when it is.
func awaitInput(fd int) {
	_, _ = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, -1)
}

// leavePoller opens the pipe again, outside the runtime's poller. Inside, every write to it would wake the
// poller's thread, in the pauses too.
func (o *outputReader) leavePoller() {
	raw, err := o.file.SyscallConn()
	if err != nil {
		return
	}
	var again *os.File
	raw.Control(func(fd uintptr) {
		// NewFile must see a file that blocks, or it puts it into the poller.
		n, err := unix.Open(fmt.Sprintf("/proc/self/fd/%d", fd), unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return
		}
		again = os.NewFile(uintptr(n), "busy pipe")
		if unix.SetNonblock(n, true) != nil {
			again.Close()
			again = nil
		}
	})
	if again == nil {
		return // slower, not wrong
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.file.Close()
	o.file, o.steady = again, true
}

// commandEnded returns a channel that is closed once what was in the pipe, when it was called, is handed over.
func (o *outputReader) commandEnded() <-chan struct{} {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.over = true
	o.expect()
	return o.complete
}

// expect finds out what there is to hand over of a command that has ended, unless a move blurs that. It is
// called with the lock held.
func (o *outputReader) expect() {
	if o.over && !o.moving && o.wanted == math.MaxInt64 {
		o.wanted = o.taken + int64(o.unread())
	}
	o.check()
}

// unread is how much is in the pipe: nothing if it was read to its end, and so closed.
func (o *outputReader) unread() (bytes int) {
	raw, err := o.file.SyscallConn()
	if err != nil {
		return 0
	}
	raw.Control(func(fd uintptr) {
		bytes, _ = unix.IoctlGetInt(int(fd), unix.TIOCINQ)
	})
	return bytes
}

func (o *outputReader) handedOver(n int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.handed += int64(n)
	o.check()
}

// check is called with the lock held.
func (o *outputReader) check() {
	if o.handed >= o.wanted {
		o.caughtUp()
	}
}

func (o *outputReader) caughtUp() {
	o.once.Do(func() { close(o.complete) })
}

func (o *outputReader) note(n int) {
	o.last = n
	if n < busyBytes {
		o.busy = 0
		return
	}
	o.busy++
	if !o.grown && (o.busy >= busyReads || n >= defaultPipeSize) {
		o.grown = true
		growPipe(o.file)
		o.leavePoller()
	}
}

func growPipe(file *os.File) {
	raw, err := file.SyscallConn()
	if err != nil {
		return
	}
	raw.Control(func(fd uintptr) {
		// Refused where the user has used up what pipe-user-pages-soft allows: slower, not wrong.
		unix.FcntlInt(fd, unix.F_SETPIPE_SZ, pipeSize)
	})
}

// endEvent words an end as os.ProcessState does.
func endEvent(status syscall.WaitStatus, timedOut bool) *process.ProcessEvent_EndEvent {
	end := &process.ProcessEvent_EndEvent{TimedOut: timedOut}
	if status.Signaled() {
		end.ExitCode = -1
		end.Signal = int32(status.Signal())
		end.Status = "signal: " + status.Signal().String()
		if status.CoreDump() {
			end.Status += " (core dumped)"
		}
		end.Error = &end.Status
		return end
	}
	end.Exited = true
	end.ExitCode = int32(status.ExitStatus())
	end.Status = fmt.Sprintf("exit status %d", status.ExitStatus())
	if end.ExitCode != 0 {
		end.Error = &end.Status
	}
	return end
}

// signal reaches the process, or, with whole, all of its tree.
func (r *running) signal(number syscall.Signal, whole bool) error {
	if whole {
		return r.tree.signal(number)
	}
	return r.reaper.signal(r.pid, number)
}

// errWrongInput is returned for input a process has no place for.
var errWrongInput = errors.New("no such input")

// write hands all of data to the process. It waits while the pipe is full, until ctx is done.
func (r *running) write(ctx context.Context, toTerminal bool, data []byte) error {
	if toTerminal && r.terminal == nil {
		return fmt.Errorf("process %d has no terminal: %w", r.pid, errWrongInput)
	}
	if !toTerminal && r.terminal != nil {
		return fmt.Errorf("process %d reads a terminal, not stdin: %w", r.pid, errWrongInput)
	}
	if r.input == nil {
		return fmt.Errorf("stdin of process %d is /dev/null: %w", r.pid, errWrongInput)
	}
	select {
	case r.writing <- struct{}{}:
	case <-r.ended:
		return os.ErrClosed
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { <-r.writing }()
	return writeUntil(ctx, r.input, data)
}

// writeUntil writes to a file the runtime polls, and gives up when ctx is done.
func writeUntil(ctx context.Context, file *os.File, data []byte) error {
	if err := file.SetWriteDeadline(time.Time{}); err != nil {
		return err
	}
	expired := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		file.SetWriteDeadline(time.Unix(1, 0))
		close(expired)
	})
	defer func() {
		if !stop() {
			<-expired // it must not come late, into the next write
		}
	}()
	_, err := file.Write(data)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return ctx.Err()
	}
	return err
}

// closeStdin gives the process end of file.
func (r *running) closeStdin() error {
	if r.terminal != nil {
		return fmt.Errorf("stdin of process %d is a terminal: %w", r.pid, errWrongInput)
	}
	r.closeInput()
	return nil
}

// closeInput may be called more than once; os.File is safe for that.
func (r *running) closeInput() {
	if r.input != nil {
		r.input.Close()
	}
}

// resize changes the size of the terminal, which sends SIGWINCH to what runs in it.
func (r *running) resize(size *pty.Winsize) error {
	if r.terminal == nil {
		return fmt.Errorf("process %d has no terminal: %w", r.pid, errWrongInput)
	}
	return setSize(r.terminal, size)
}

// info describes the process for List.
func (r *running) info() *process.ProcessInfo {
	info := &process.ProcessInfo{
		Config:    r.command.config,
		Pid:       uint32(r.pid),
		Tag:       r.command.tag,
		State:     process.ProcessState_PROCESS_STATE_RUNNING,
		StartedAt: timestamppb.New(r.started),
		Kept:      r.command.keep,
		Pty:       r.terminal != nil,
	}
	select {
	case <-r.ended:
		info.State = process.ProcessState_PROCESS_STATE_ENDED
		info.End = r.end
		info.EndedAt = timestamppb.New(r.endedAt)
	default:
	}
	return info
}

// ends are the two sides of what connects a process to the agent.
type ends struct {
	child    [3]uintptr
	close    []func() error // the child's side, open here until it has been forked
	outputs  []outputEnd
	input    *os.File
	terminal *os.File
}

func openEnds(c command) (*ends, error) {
	if c.size != nil {
		return openTerminal(c)
	}
	e := &ends{}
	if err := e.openPipes(c.stdin); err != nil {
		e.closeChild()
		e.closeOwn()
		return nil, fmt.Errorf("open pipes: %w", err)
	}
	return e, nil
}

func (e *ends) openPipes(stdin bool) error {
	if err := e.openStdin(stdin); err != nil {
		return err
	}
	for i, from := range []source{stdout, stderr} {
		read, write, err := pipe()
		if err != nil {
			return err
		}
		e.child[1+i] = uintptr(write)
		e.close = append(e.close, func() error { return syscall.Close(write) })
		e.outputs = append(e.outputs, outputEnd{from: from, file: polled(read)})
	}
	return nil
}

func (e *ends) openStdin(asPipe bool) error {
	if !asPipe {
		null, err := syscall.Open(os.DevNull, syscall.O_RDONLY|syscall.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		e.child[0] = uintptr(null)
		e.close = append(e.close, func() error { return syscall.Close(null) })
		return nil
	}
	read, write, err := pipe()
	if err != nil {
		return err
	}
	e.child[0] = uintptr(read)
	e.close = append(e.close, func() error { return syscall.Close(read) })
	e.input = polled(write)
	return nil
}

func pipe() (read, write int, err error) {
	var fds [2]int
	err = syscall.Pipe2(fds[:], syscall.O_CLOEXEC)
	return fds[0], fds[1], err
}

// polled wraps the agent's end: not blocking, so that a goroutine waits and no thread does.
func polled(fd int) *os.File {
	// Fails for no open descriptor; then reads block a thread, and work.
	_ = syscall.SetNonblock(fd, true)
	return os.NewFile(uintptr(fd), "pipe")
}

func openTerminal(c command) (*ends, error) {
	opened, slave, err := pty.Open()
	if err != nil {
		return nil, fmt.Errorf("open a terminal: %w", err)
	}
	master, err := repoll(opened)
	if err != nil {
		slave.Close()
		return nil, fmt.Errorf("open a terminal: %w", err)
	}
	e := &ends{
		terminal: master,
		input:    master,
		outputs:  []outputEnd{{from: terminal, file: master}},
		close:    []func() error{slave.Close},
	}
	if err := prepareTerminal(master, slave, c); err != nil {
		e.closeChild()
		e.closeOwn()
		return nil, err
	}
	fd := slave.Fd()
	e.child = [3]uintptr{fd, fd, fd}
	return e, nil
}

// repoll replaces a file that package pty has put into blocking mode by one the runtime polls. Only then
// does Close end a Read, and a write deadline a Write.
func repoll(file *os.File) (*os.File, error) {
	defer file.Close()
	fd, err := unix.FcntlInt(file.Fd(), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return nil, err
	}
	return polled(fd), nil
}

func setSize(terminal *os.File, size *pty.Winsize) error {
	raw, err := terminal.SyscallConn()
	if err != nil {
		return err
	}
	var ioctlErr error
	err = raw.Control(func(fd uintptr) {
		ioctlErr = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &unix.Winsize{Row: size.Rows, Col: size.Cols})
	})
	return errors.Join(err, ioctlErr)
}

func prepareTerminal(master, slave *os.File, c command) error {
	if err := setSize(master, c.size); err != nil {
		return fmt.Errorf("set the size of a terminal: %w", err)
	}
	if c.account.credential() == nil {
		return nil
	}
	// The user opens /dev/tty and its own name for it again: sudo, tmux and screen do.
	if err := slave.Chown(int(c.account.uid), -1); err != nil {
		return fmt.Errorf("hand a terminal to user %d: %w", c.account.uid, err)
	}
	return nil
}

func (e *ends) closeChild() {
	for _, closeEnd := range e.close {
		closeEnd()
	}
	e.close = nil
}

func (e *ends) closeOwn() {
	for _, out := range e.outputs {
		out.file.Close()
	}
	if e.input != nil && e.input != e.terminal {
		e.input.Close()
	}
}

// table holds the processes that run and those that ended lately.
type table struct {
	mu        sync.Mutex
	starting  int
	live      map[int]*running
	ended     []*running // oldest first
	endedKept []*running
}

// reserve makes sure of a place for one more process; release gives it back once it is in the table, or
// could not be started.
func (t *table) reserve() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.live)+t.starting >= maxProcesses {
		return false
	}
	t.starting++
	return true
}

func (t *table) release() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.starting--
}

func (t *table) add(r *running) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.live[r.pid] = r
}

// end moves a process to those that ended, and forgets the oldest of these.
func (t *table) end(r *running) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.live[r.pid] == r { // its number may have been given out again
		delete(t.live, r.pid)
	}
	list := &t.ended
	if r.command.keep {
		list = &t.endedKept
	}
	*list = append(*list, r)
	if len(*list) <= maxEnded {
		return
	}
	(*list)[0].discard()
	*list = append((*list)[:0:0], (*list)[1:]...)
}

// find prefers a process that runs to one that ended, and a late end to an early one.
func (t *table) find(matches func(*running) bool) *running {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, r := range t.live {
		if matches(r) {
			return r
		}
	}
	var latest *running
	for _, r := range append(t.ended[:len(t.ended):len(t.ended)], t.endedKept...) {
		if matches(r) && (latest == nil || r.endedAt.After(latest.endedAt)) {
			latest = r
		}
	}
	return latest
}

func (t *table) byPid(pid int) *running {
	t.mu.Lock()
	r := t.live[pid]
	t.mu.Unlock()
	if r != nil {
		return r
	}
	return t.find(func(r *running) bool { return r.pid == pid })
}

func (t *table) byTag(tag string) *running {
	return t.find(func(r *running) bool { return r.command.tag != nil && *r.command.tag == tag })
}

func (t *table) list(includeEnded bool) []*running {
	t.mu.Lock()
	defer t.mu.Unlock()
	var list []*running
	if includeEnded {
		list = append(append(list, t.ended...), t.endedKept...)
	}
	for _, r := range t.live {
		list = append(list, r)
	}
	return list
}

// close gives back the disk space of all kept output.
func (t *table) close() {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, r := range t.endedKept {
		r.discard()
	}
	t.endedKept = nil
}
