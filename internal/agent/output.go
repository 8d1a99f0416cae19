package agent

import (
	"context"
	"errors"
	"io"
	"os"
	"sync"
)

// errLagging ends a stream that is dropped so that it does not hold others up.
var errLagging = errors.New("this stream is too slow for the output and was dropped; connect again")

// sink takes one piece of output and is done with its buffer when it returns. An error ends its stream.
type sink func(from source, c chunk) error

// mover has the kernel move what is in a pipe to a stream, if it can, and returns how much that was.
type mover func(from source, pipe *os.File) (int, error)

// A follower is one stream on the output of one process.
type follower interface {
	// follow hands output to emit until all of it was handed over (nil), ctx is done, or an error. It is
	// called once, and emit is not called after it has returned.
	follow(ctx context.Context, emit sink) error
}

// output spreads what one process writes to the streams that follow it.
type output struct {
	kept *recording // nil unless output is kept

	mu       sync.Mutex
	first    *directFollower // the stream that started the process, while it lasts
	queued   []*queueFollower
	follows  int
	finished bool
}

// deliver is called by the one or two goroutines that read a process's output. It waits for the stream
// that started the process, and for a later one if that is the only one.
func (o *output) deliver(from source, c chunk) {
	if o.kept != nil {
		o.kept.add(from, c.data())
		return
	}
	o.mu.Lock()
	if o.finished {
		o.mu.Unlock()
		return
	}
	first, queued := o.first, o.queued
	o.mu.Unlock()
	for _, f := range queued {
		f.push(from, c.data())
	}
	if first != nil {
		first.push(from, c)
	}
}

// moves tells if output can be moved: if the stream that started the process alone follows it, and can.
func (o *output) moves() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.kept == nil && !o.finished && o.first != nil && o.first.mover != nil && len(o.queued) == 0
}

// move is deliver of what is in a pipe. It returns how much that was; what was not moved can be delivered.
func (o *output) move(from source, pipe *os.File) int {
	if !o.moves() {
		return 0
	}
	o.mu.Lock()
	first := o.first
	o.mu.Unlock()
	if first == nil {
		return 0
	}
	return first.move(from, pipe)
}

// finish says that there is no more output: what is delivered later, by children left behind, is lost.
func (o *output) finish() {
	if o.kept != nil {
		o.kept.finish()
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.finished {
		return
	}
	o.finished = true
	if o.first != nil {
		o.first.finish()
	}
	for _, f := range o.queued {
		f.finish()
	}
}

// starter returns the follower for the stream that starts the process. The process waits for it.
func (o *output) starter() follower {
	if o.kept != nil {
		return &keptFollower{reader: o.kept.reader(true, true)}
	}
	f := &directFollower{output: o, ready: make(chan struct{}), over: make(chan struct{})}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.first = f
	o.follows++
	return f
}

// errTooManyFollowers is returned when maxSubscribers streams are there already.
var errTooManyFollowers = errors.New("too many streams follow this process")

// join returns the follower for a later stream. With replay it begins with what is kept.
func (o *output) join(replay bool) (follower, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.follows >= maxSubscribers {
		return nil, errTooManyFollowers
	}
	o.follows++
	if o.kept != nil {
		return &keptFollower{reader: o.kept.reader(replay, false), left: o.leave}, nil
	}
	f := &queueFollower{output: o, finished: o.finished, wake: make(chan struct{}, 1)}
	f.room.L = &f.mu
	if !o.finished {
		// A new slice, as deliver reads the old one without the lock.
		o.queued = append(o.queued[:len(o.queued):len(o.queued)], f)
	}
	o.share()
	return f, nil
}

// share tells the followers whether they are alone. It is called with the lock held.
func (o *output) share() {
	alone := o.first == nil && len(o.queued) == 1
	for _, f := range o.queued {
		f.setAlone(alone)
	}
}

func (o *output) leave() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.follows--
}

func (o *output) leaveFirst() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.follows--
	o.first = nil
	o.share()
}

func (o *output) leaveQueue(f *queueFollower) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.follows--
	var rest []*queueFollower
	for _, other := range o.queued {
		if other != f {
			rest = append(rest, other)
		}
	}
	o.queued = rest
	o.share()
}

// directFollower lets the goroutine that reads a pipe write to the stream itself: no copy, no hand-over.
type directFollower struct {
	output *output
	ready  chan struct{} // closed when emit may be called
	over   chan struct{} // closed when there is no more output, or emit failed
	mover  mover         // nil if the stream has none

	once sync.Once
	mu   sync.Mutex
	emit sink
	err  error
	left bool
}

func (f *directFollower) follow(ctx context.Context, emit sink) error {
	defer f.output.leaveFirst()
	f.mu.Lock()
	f.emit = emit
	f.mu.Unlock()
	close(f.ready)
	select {
	case <-f.over:
	case <-ctx.Done():
	}
	// Waits for a push that is under way: emit must not be called once this has returned.
	f.mu.Lock()
	defer f.mu.Unlock()
	f.left = true
	if f.err != nil {
		return f.err
	}
	return ctx.Err()
}

func (f *directFollower) push(from source, c chunk) {
	<-f.ready
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.left || f.err != nil {
		return
	}
	if f.err = f.emit(from, c); f.err != nil {
		f.finish()
	}
}

func (f *directFollower) move(from source, pipe *os.File) (n int) {
	<-f.ready
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.left || f.err != nil {
		return 0
	}
	if n, f.err = f.mover(from, pipe); f.err != nil {
		f.finish()
	}
	return n
}

func (f *directFollower) finish() {
	f.once.Do(func() { close(f.over) })
}

// queueFollower puts a bounded queue between the process and a stream, and drops the stream when the
// queue is full, unless nobody else would have to wait.
type queueFollower struct {
	output *output
	wake   chan struct{} // something to take, or the end

	mu       sync.Mutex
	room     sync.Cond
	pieces   []piece
	bytes    int
	alone    bool
	finished bool
	lagging  bool
	left     bool
}

type piece struct {
	from  source
	chunk chunk
}

func (f *queueFollower) follow(ctx context.Context, emit sink) error {
	defer f.output.leaveQueue(f)
	defer f.leave()
	for {
		pieces, err := f.take()
		for _, p := range pieces {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			if emitErr := emit(p.from, p.chunk); emitErr != nil {
				return emitErr
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		select {
		case <-f.wake:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// take empties the queue. With the last pieces comes the reason why there are no more.
func (f *queueFollower) take() ([]piece, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	pieces := f.pieces
	f.pieces, f.bytes = nil, 0
	f.room.Broadcast()
	switch {
	case f.lagging:
		return pieces, errLagging
	case f.finished:
		return pieces, io.EOF
	}
	return pieces, nil
}

// pieceOverhead keeps a flood of tiny pieces within the bound as well.
const pieceOverhead = 64

func (f *queueFollower) push(from source, data []byte) {
	size := len(data) + pieceOverhead
	f.mu.Lock()
	defer f.mu.Unlock()
	for f.bytes+size > queueBytes && f.alone && !f.left && !f.finished {
		f.room.Wait()
	}
	if f.left || f.lagging || f.finished {
		return
	}
	if f.bytes+size > queueBytes {
		f.lagging = true
		f.notify()
		return
	}
	f.pieces = append(f.pieces, piece{from: from, chunk: newChunk(data)})
	f.bytes += size
	f.notify()
}

func (f *queueFollower) notify() {
	select {
	case f.wake <- struct{}{}:
	default:
	}
}

func (f *queueFollower) setAlone(alone bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.alone = alone
	f.room.Broadcast()
}

func (f *queueFollower) finish() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.finished = true
	f.room.Broadcast()
	f.notify()
}

func (f *queueFollower) leave() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.left = true
	f.pieces, f.bytes = nil, 0
	f.room.Broadcast()
}

// keptFollower reads what is kept.
type keptFollower struct {
	reader *recordingReader
	left   func() // may be nil

	// caughtUp, if there is one, is called once, when all was emitted that was there when the reader joined.
	caughtUp func() error
}

func (f *keptFollower) follow(ctx context.Context, emit sink) error {
	defer f.reader.leave()
	if f.left != nil {
		defer f.left()
	}
	buffer := chunks.Get().(*[]byte)
	defer chunks.Put(buffer)
	for {
		if f.caughtUp != nil && f.reader.position >= f.reader.joined {
			if err := f.caughtUp(); err != nil {
				return err
			}
			f.caughtUp = nil
		}
		from, data, err := f.reader.next(ctx, (*buffer)[headroom:])
		if errors.Is(err, io.EOF) {
			return nil
		}
		if errors.Is(err, errLapped) {
			return errLagging
		}
		if err != nil {
			return err
		}
		if err := emit(from, chunk{buffer: *buffer, n: len(data)}); err != nil {
			return err
		}
	}
}
