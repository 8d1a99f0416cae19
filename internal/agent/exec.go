package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"connectrpc.com/connect"
	"github.com/creack/pty"

	"github.com/vmsan/vmsan/internal/guest/proto/process"
)

// processService is process.Process.
type processService struct {
	agent *Agent
}

// Start runs a command. The stream owns neither the command nor its limit in time: both outlive it, unless
// the caller asked otherwise.
func (s *processService) Start(ctx context.Context, request *connect.Request[process.StartRequest], stream *connect.ServerStream[process.StartResponse]) error {
	c, err := s.agent.resolveCommand(ctx, request.Msg, request.Header())
	if err != nil {
		return err
	}
	r, err := s.agent.startCommand(c)
	if err != nil {
		return err
	}
	if request.Msg.GetKillOnDisconnect() {
		stop := context.AfterFunc(ctx, r.kill)
		// A write that fails may end the stream before ctx does.
		defer func() {
			stop()
			r.kill()
		}()
	}
	response := &process.StartResponse{}
	events := newEventStream(ctx, request.Header(), func(event *process.ProcessEvent) error {
		response.Event = event
		return stream.Send(response)
	})
	defer events.close()
	err = r.stream(ctx, r.starter, events)
	if r.timedOut.Load() || errors.Is(ctx.Err(), context.DeadlineExceeded) {
		r.expire()
		return connect.NewError(connect.CodeDeadlineExceeded, fmt.Errorf("process %d ran longer than %v", r.pid, c.limit))
	}
	return err
}

// Connect follows a command that was started before.
func (s *processService) Connect(ctx context.Context, request *connect.Request[process.ConnectRequest], stream *connect.ServerStream[process.ConnectResponse]) error {
	r, err := s.find(request.Msg.GetProcess())
	if err != nil {
		return err
	}
	if request.Msg.GetReplay() && r.output.kept == nil {
		return connect.NewError(connect.CodeFailedPrecondition, fmt.Errorf("process %d was not started with keep_output", r.pid))
	}
	follower, err := r.output.join(request.Msg.GetReplay())
	if err != nil {
		return connect.NewError(connect.CodeResourceExhausted, err)
	}
	response := &process.ConnectResponse{}
	events := newEventStream(ctx, request.Header(), func(event *process.ProcessEvent) error {
		response.Event = event
		return stream.Send(response)
	})
	defer events.close()
	if kept, ok := follower.(*keptFollower); ok && request.Msg.GetReplay() {
		kept.caughtUp = events.keepalive
	}
	return r.stream(ctx, follower, events)
}

// stream sends start, what the follower gets, and end.
func (r *running) stream(ctx context.Context, follower follower, events *eventStream) error {
	if err := events.start(r.pid); err != nil {
		// The follower is told so by the first thing it sends.
		gone, cancel := context.WithCancel(ctx)
		cancel()
		return errors.Join(err, follower.follow(gone, func(source, chunk) error { return err }))
	}
	if err := follower.follow(ctx, events.data); err != nil {
		return streamError(err)
	}
	select {
	case <-r.ended:
	case <-ctx.Done():
		return ctx.Err()
	}
	if r.timedOut.Load() && r.starter == follower {
		return nil
	}
	return events.end(r.end)
}

func streamError(err error) error {
	if errors.Is(err, errLagging) {
		return connect.NewError(connect.CodeResourceExhausted, err)
	}
	return err
}

// kill ends the whole tree, if the command has not ended.
func (r *running) kill() {
	select {
	case <-r.ended:
	default:
		// It fails for trees that are gone already.
		_ = r.tree.signal(syscall.SIGKILL)
	}
}

// startCommand launches within the bound on processes.
func (a *Agent) startCommand(c command) (*running, error) {
	if !a.table.reserve() {
		return nil, connect.NewError(connect.CodeResourceExhausted, fmt.Errorf("%d processes run already", maxProcesses))
	}
	defer a.table.release()
	r, err := a.launch(c)
	if err != nil {
		return nil, connect.NewError(startCode(err), err)
	}
	return r, nil
}

// startCode sorts what the kernel says to fork, chdir and exec.
func startCode(err error) connect.Code {
	var failure *startError
	switch {
	case !errors.As(err, &failure):
		return connect.CodeInternal
	case errors.Is(err, syscall.ENOENT), errors.Is(err, syscall.ENOTDIR):
		return connect.CodeNotFound
	case errors.Is(err, syscall.EACCES), errors.Is(err, syscall.EPERM):
		return connect.CodePermissionDenied
	case errors.Is(err, syscall.ENOEXEC), errors.Is(err, syscall.E2BIG), errors.Is(err, syscall.ELOOP), errors.Is(err, syscall.ENAMETOOLONG):
		return connect.CodeInvalidArgument
	case errors.Is(err, syscall.EAGAIN), errors.Is(err, syscall.ENOMEM), errors.Is(err, syscall.EMFILE), errors.Is(err, syscall.ENFILE):
		return connect.CodeResourceExhausted
	}
	return connect.CodeInternal
}

// resolveCommand checks a request and fills in what it leaves open.
func (a *Agent) resolveCommand(ctx context.Context, request *process.StartRequest, header http.Header) (command, error) {
	config := request.GetProcess()
	if err := checkConfig(config, request.GetTag()); err != nil {
		return command{}, connect.NewError(connect.CodeInvalidArgument, err)
	}
	account, err := a.rpcCaller(config.GetUser(), header)
	if err != nil {
		return command{}, err
	}
	settings := a.current()
	cwd, err := resolveCwd(config, account, settings.workdir)
	if err != nil {
		return command{}, connect.NewError(connect.CodeInvalidArgument, err)
	}
	env, path, err := environment(account, settings.environment, config.GetEnvs())
	if err != nil {
		return command{}, connect.NewError(connect.CodeInvalidArgument, err)
	}
	program, err := findProgram(config.GetCmd(), path, cwd, account)
	if err != nil {
		return command{}, err
	}
	return command{
		config:  config,
		path:    program,
		argv:    append([]string{config.GetCmd()}, config.GetArgs()...),
		env:     env,
		cwd:     cwd,
		account: account,
		tag:     request.Tag,
		size:    windowSize(request.GetPty()),
		stdin:   request.Stdin == nil || request.GetStdin(),
		keep:    request.GetKeepOutput(),
		limit:   timeLeft(ctx),
	}, nil
}

// timeLeft is the Connect-Timeout-Ms of a call, which Connect has made the deadline of its context.
func timeLeft(ctx context.Context) time.Duration {
	deadline, ok := ctx.Deadline()
	if !ok {
		return 0
	}
	return max(time.Until(deadline), time.Nanosecond)
}

func checkConfig(config *process.ProcessConfig, tag string) error {
	if config.GetCmd() == "" {
		return errors.New("no command given")
	}
	if len(config.GetCmd()) > maxPath {
		return fmt.Errorf("command is longer than %d bytes", maxPath)
	}
	if len(tag) > maxTag {
		return fmt.Errorf("tag is longer than %d bytes", maxTag)
	}
	size := len(config.GetCmd()) + 1
	for _, argument := range config.GetArgs() {
		size += len(argument) + 1
		if strings.ContainsRune(argument, 0) {
			return errors.New("an argument has a NUL byte")
		}
	}
	if size > maxArguments {
		return fmt.Errorf("arguments take %d bytes, more than %d", size, maxArguments)
	}
	if strings.ContainsRune(config.GetCmd(), 0) {
		return errors.New("the command has a NUL byte")
	}
	return nil
}

// resolveCwd checks that a directory that was asked for is there. A default that is missing is replaced by
// the root: users of small images often have no home.
func resolveCwd(config *process.ProcessConfig, account account, workdir string) (string, error) {
	cwd, err := resolve(config.GetCwd(), account.home, workdir)
	if err != nil {
		return "", fmt.Errorf("cwd: %w", err)
	}
	info, err := os.Stat(cwd)
	switch {
	case err == nil && info.IsDir():
		return cwd, nil
	case config.GetCwd() == "":
		return "/", nil
	case err == nil:
		return "", fmt.Errorf("cwd '%s' is not a directory", cwd)
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ENOTDIR):
		return "", fmt.Errorf("cwd '%s' does not exist", cwd)
	}
	return "", fmt.Errorf("cwd: %w", err)
}

// environment puts one together, later sources winning, and also returns its PATH.
func environment(account account, layers ...map[string]string) ([]string, string, error) {
	name := account.name
	if name == "" {
		name = strconv.FormatUint(uint64(account.uid), 10)
	}
	all := map[string]string{"PATH": defaultPath, "HOME": account.home, "USER": name, "LOGNAME": name}
	for _, layer := range layers {
		maps.Copy(all, layer)
	}
	list := make([]string, 0, len(all))
	size := 0
	for key, value := range all {
		if key == "" || strings.ContainsAny(key, "=\x00") || strings.ContainsRune(value, 0) {
			return nil, "", fmt.Errorf("environment variable %q has a name or value no process can have", key)
		}
		list = append(list, key+"="+value)
		size += len(key) + len(value) + 2
	}
	if size > maxEnvironment {
		return nil, "", fmt.Errorf("environment takes %d bytes, more than %d", size, maxEnvironment)
	}
	slices.Sort(list)
	return list, all["PATH"], nil
}

// findProgram finds a command as execvp does: with a slash it is a path, else it is looked for in PATH.
func findProgram(cmd, path, cwd string, account account) (string, error) {
	if strings.Contains(cmd, "/") {
		return checkProgram(cmd, absolute(cmd, cwd), account)
	}
	var denied error
	for _, directory := range filepath.SplitList(path) {
		// An empty entry means the current directory.
		program, err := checkProgram(cmd, absolute(filepath.Join(directory, cmd), cwd), account)
		if err == nil {
			return program, nil
		}
		if connect.CodeOf(err) == connect.CodePermissionDenied {
			denied = err
		}
	}
	if denied != nil {
		return "", denied
	}
	return "", connect.NewError(connect.CodeNotFound, fmt.Errorf("command '%s' is not in PATH (%s)", cmd, path))
}

func absolute(path, cwd string) string {
	if filepath.IsAbs(path) {
		return path
	}
	return filepath.Join(cwd, path)
}

// checkProgram finds out before the fork what can be told then; the kernel has the last word.
func checkProgram(cmd, path string, account account) (string, error) {
	var stat syscall.Stat_t
	err := syscall.Stat(path, &stat)
	switch {
	case err == syscall.ENOENT, err == syscall.ENOTDIR:
		return "", connect.NewError(connect.CodeNotFound, fmt.Errorf("command '%s' does not exist", path))
	case err != nil:
		return "", connect.NewError(connect.CodeInvalidArgument, fmt.Errorf("look at command '%s': %w", cmd, err))
	case stat.Mode&syscall.S_IFMT != syscall.S_IFREG:
		return "", connect.NewError(connect.CodePermissionDenied, fmt.Errorf("command '%s' is not a file", path))
	case !account.mayExecute(&stat):
		return "", connect.NewError(connect.CodePermissionDenied, fmt.Errorf("command '%s' is not executable", path))
	}
	return path, nil
}

// windowSize gives a terminal of no size the classic one.
func windowSize(terminal *process.PTY) *pty.Winsize {
	if terminal == nil {
		return nil
	}
	size := &pty.Winsize{
		Cols: uint16(min(terminal.GetSize().GetCols(), 65535)),
		Rows: uint16(min(terminal.GetSize().GetRows(), 65535)),
	}
	if size.Cols == 0 {
		size.Cols = 80
	}
	if size.Rows == 0 {
		size.Rows = 24
	}
	return size
}

// List names what runs, and, if asked, what ended lately.
func (s *processService) List(_ context.Context, request *connect.Request[process.ListRequest]) (*connect.Response[process.ListResponse], error) {
	response := &process.ListResponse{}
	for _, r := range s.agent.table.list(request.Msg.GetIncludeEnded()) {
		response.Processes = append(response.Processes, r.info())
	}
	slices.SortStableFunc(response.Processes, func(a, b *process.ProcessInfo) int {
		return a.GetStartedAt().AsTime().Compare(b.GetStartedAt().AsTime())
	})
	return connect.NewResponse(response), nil
}

// Update sets the size of a terminal.
func (s *processService) Update(_ context.Context, request *connect.Request[process.UpdateRequest]) (*connect.Response[process.UpdateResponse], error) {
	r, err := s.findLive(request.Msg.GetProcess())
	if err != nil {
		return nil, err
	}
	if size := windowSize(request.Msg.GetPty()); size != nil {
		if err := r.resize(size); err != nil {
			return nil, connect.NewError(connect.CodeInternal, err)
		}
	}
	return connect.NewResponse(&process.UpdateResponse{}), nil
}

// SendInput writes to stdin or the terminal.
func (s *processService) SendInput(ctx context.Context, request *connect.Request[process.SendInputRequest]) (*connect.Response[process.SendInputResponse], error) {
	r, err := s.findLive(request.Msg.GetProcess())
	if err != nil {
		return nil, err
	}
	if err := sendInput(ctx, r, request.Msg.GetInput()); err != nil {
		return nil, err
	}
	return connect.NewResponse(&process.SendInputResponse{}), nil
}

func sendInput(ctx context.Context, r *running, input *process.ProcessInput) error {
	var err error
	switch in := input.GetInput().(type) {
	case *process.ProcessInput_Stdin:
		err = r.write(ctx, false, in.Stdin)
	case *process.ProcessInput_Pty:
		err = r.write(ctx, true, in.Pty)
	default:
		return connect.NewError(connect.CodeUnimplemented, errors.New("input is neither stdin nor pty"))
	}
	return inputError(r, err)
}

func inputError(r *running, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, os.ErrClosed), errors.Is(err, syscall.EPIPE), errors.Is(err, syscall.EIO):
		return connect.NewError(connect.CodeFailedPrecondition, fmt.Errorf("input of process %d is closed", r.pid))
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return err
	}
	return connect.NewError(connect.CodeInternal, err)
}

// StreamInput writes piece after piece to one process.
func (s *processService) StreamInput(ctx context.Context, stream *connect.ClientStream[process.StreamInputRequest]) (*connect.Response[process.StreamInputResponse], error) {
	var to *running
	for stream.Receive() {
		switch event := stream.Msg().GetEvent().(type) {
		case *process.StreamInputRequest_Start:
			r, err := s.findLive(event.Start.GetProcess())
			if err != nil {
				return nil, err
			}
			to = r
		case *process.StreamInputRequest_Data:
			if to == nil {
				return nil, connect.NewError(connect.CodeInvalidArgument, errors.New("data came before start"))
			}
			if err := sendInput(ctx, to, event.Data.GetInput()); err != nil {
				return nil, err
			}
		}
	}
	if err := stream.Err(); err != nil {
		return nil, err
	}
	return connect.NewResponse(&process.StreamInputResponse{}), nil
}

// SendSignal signals a process or its tree.
func (s *processService) SendSignal(_ context.Context, request *connect.Request[process.SendSignalRequest]) (*connect.Response[process.SendSignalResponse], error) {
	number, err := signalNumber(request.Msg)
	if err != nil {
		return nil, err
	}
	r, err := s.find(request.Msg.GetProcess())
	if err != nil {
		return nil, err
	}
	err = r.signal(number, request.Msg.GetTree())
	switch {
	case errors.Is(err, syscall.ESRCH):
		return nil, connect.NewError(connect.CodeNotFound, fmt.Errorf("process %d has ended", r.pid))
	case err != nil:
		return nil, connect.NewError(connect.CodeInternal, fmt.Errorf("signal process %d: %w", r.pid, err))
	}
	return connect.NewResponse(&process.SendSignalResponse{}), nil
}

// lastSignal is SIGRTMAX.
const lastSignal = 64

func signalNumber(request *process.SendSignalRequest) (syscall.Signal, error) {
	if request.Number != nil {
		if request.GetNumber() < 1 || request.GetNumber() > lastSignal {
			return 0, connect.NewError(connect.CodeInvalidArgument, fmt.Errorf("no signal has number %d", request.GetNumber()))
		}
		return syscall.Signal(request.GetNumber()), nil
	}
	switch request.GetSignal() {
	case process.Signal_SIGNAL_SIGKILL:
		return syscall.SIGKILL, nil
	case process.Signal_SIGNAL_SIGTERM:
		return syscall.SIGTERM, nil
	}
	return 0, connect.NewError(connect.CodeUnimplemented, fmt.Errorf("signal %s is sent by its number only", request.GetSignal()))
}

// CloseStdin gives a process end of file.
func (s *processService) CloseStdin(_ context.Context, request *connect.Request[process.CloseStdinRequest]) (*connect.Response[process.CloseStdinResponse], error) {
	r, err := s.findLive(request.Msg.GetProcess())
	if err != nil {
		return nil, err
	}
	if err := r.closeStdin(); err != nil {
		return nil, connect.NewError(connect.CodeInternal, err)
	}
	return connect.NewResponse(&process.CloseStdinResponse{}), nil
}

// find returns a process that runs, or ended lately.
func (s *processService) find(selector *process.ProcessSelector) (*running, error) {
	var r *running
	var wanted string
	switch by := selector.GetSelector().(type) {
	case *process.ProcessSelector_Pid:
		r, wanted = s.agent.table.byPid(int(by.Pid)), fmt.Sprintf("pid %d", by.Pid)
	case *process.ProcessSelector_Tag:
		r, wanted = s.agent.table.byTag(by.Tag), fmt.Sprintf("tag '%s'", by.Tag)
	default:
		return nil, connect.NewError(connect.CodeInvalidArgument, errors.New("no process selected"))
	}
	if r == nil {
		return nil, connect.NewError(connect.CodeNotFound, fmt.Errorf("process with %s not found", wanted))
	}
	return r, nil
}

func (s *processService) findLive(selector *process.ProcessSelector) (*running, error) {
	r, err := s.find(selector)
	if err != nil {
		return nil, err
	}
	select {
	case <-r.ended:
		return nil, connect.NewError(connect.CodeNotFound, fmt.Errorf("process %d has ended", r.pid))
	default:
		return r, nil
	}
}

// eventStream sends the events of one process to one client, and a keepalive when there was none for a
// while. Its messages are made once and used again: Send has encoded them when it returns.
type eventStream struct {
	interval time.Duration
	raw      *rawStream // nil for JSON

	mu     sync.Mutex
	send   func(*process.ProcessEvent) error
	last   time.Time
	timer  *time.Timer
	closed bool

	event   process.ProcessEvent
	output  process.ProcessEvent_DataEvent
	wrapped process.ProcessEvent_Data
	stdout  process.ProcessEvent_DataEvent_Stdout
	stderr  process.ProcessEvent_DataEvent_Stderr
	pty     process.ProcessEvent_DataEvent_Pty
}

func newEventStream(ctx context.Context, header http.Header, send func(*process.ProcessEvent) error) *eventStream {
	e := &eventStream{interval: keepaliveInterval(header), send: send, last: time.Now()}
	e.wrapped.Data = &e.output
	e.raw, _ = ctx.Value(rawStreamKey{}).(*rawStream)
	e.timer = time.AfterFunc(e.interval, e.beat)
	return e
}

// keepaliveInterval is what the client asks for, in seconds.
func keepaliveInterval(header http.Header) time.Duration {
	seconds, err := strconv.ParseUint(header.Get("Keepalive-Ping-Interval"), 10, 31)
	if err != nil || seconds == 0 {
		return defaultKeepalive
	}
	return min(time.Duration(seconds)*time.Second, maxKeepalive)
}

func (e *eventStream) start(pid int) error {
	return e.emit(&process.ProcessEvent{Event: &process.ProcessEvent_Start{
		Start: &process.ProcessEvent_StartEvent{Pid: uint32(pid)},
	}})
}

func (e *eventStream) end(end *process.ProcessEvent_EndEvent) error {
	return e.emit(&process.ProcessEvent{Event: &process.ProcessEvent_End{End: end}})
}

func (e *eventStream) keepalive() error { return e.emit(keepalive()) }

func keepalive() *process.ProcessEvent {
	return &process.ProcessEvent{Event: &process.ProcessEvent_Keepalive{Keepalive: &process.ProcessEvent_KeepAlive{}}}
}

func (e *eventStream) emit(event *process.ProcessEvent) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.emitLocked(event)
}

func (e *eventStream) emitLocked(event *process.ProcessEvent) error {
	if e.closed {
		return os.ErrClosed
	}
	err := e.send(event)
	e.last = time.Now()
	return err
}

// data is the sink of the process's output.
func (e *eventStream) data(from source, c chunk) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.raw == nil {
		return e.emitLocked(e.dataEvent(from, c.data()))
	}
	if e.closed {
		return os.ErrClosed
	}
	err := e.raw.write(c.framed(from))
	e.last = time.Now()
	return err
}

// dataEvent is called with the lock held. The event is good until the next one.
func (e *eventStream) dataEvent(from source, data []byte) *process.ProcessEvent {
	switch from {
	case stdout:
		e.stdout.Stdout = data
		e.output.Output = &e.stdout
	case stderr:
		e.stderr.Stderr = data
		e.output.Output = &e.stderr
	case terminal:
		e.pty.Pty = data
		e.output.Output = &e.pty
	}
	e.event.Event = &e.wrapped
	return &e.event
}

func (e *eventStream) beat() {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return
	}
	idle := time.Since(e.last)
	if idle >= e.interval {
		// A client that is gone is noticed by who owns the stream.
		_ = e.emitLocked(keepalive())
		idle = 0
	}
	e.timer.Reset(e.interval - idle)
}

// close waits for an event being sent; none is sent after it.
func (e *eventStream) close() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.closed = true
	e.timer.Stop()
}
