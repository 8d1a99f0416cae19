// Package gate is the process that talks to one guest: all bytes that a guest
// writes are read here, by a process that has no rights on the host. It hands
// out streams to the guest over a socket and keeps the guest's console.
package gate

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"github.com/vmsan/vmsan/internal/gate/logfile"
	"github.com/vmsan/vmsan/internal/gate/sockets"
	"github.com/vmsan/vmsan/internal/guest"
	"github.com/vmsan/vmsan/internal/link"
)

// maxStreams is how many clients may talk to the guest at once.
const maxStreams = 512

// acceptPause is how long nobody is let in after that has failed.
const acceptPause = 100 * time.Millisecond

// memoryLimit makes the garbage collector work harder before the gate's
// cgroup gets tight, in bytes.
const memoryLimit = 48 << 20

// Main is the gate: it runs until its monitor or its guest is gone. Its files
// are inherited; args are the sandbox's id, and, for one with a network, how
// many published ports are among the files.
func Main(args []string, log *slog.Logger) error {
	debug.SetGCPercent(50)
	debug.SetMemoryLimit(memoryLimit)
	g, err := inherit(log)
	if err == nil && len(args) > 1 {
		g.network, err = inheritNetwork(args[1], log)
	}
	if err != nil {
		return err
	}
	g.first = fdFirst(g.network != nil, g.network.portCount())
	if err := confine(g.network != nil); err != nil {
		return err
	}
	return g.run()
}

// gate is the state of the process.
type gate struct {
	log      *slog.Logger
	orders   net.Conn
	listener net.Listener
	control  io.ReadWriteCloser
	data     io.ReadWriteCloser
	console  net.Conn
	output   *logfile.File

	host    *link.Host
	client  *guest.Client
	linked  chan struct{}  // closed when client is there
	network *networkServer // nil without a network
	clients atomic.Int32   // that have streams to the guest
	first   uintptr        // the descriptor of the first client, if there is one
}

func inherit(log *slog.Logger) (*gate, error) {
	g := &gate{log: log, linked: make(chan struct{})}
	for _, c := range []struct {
		fd   uintptr
		name string
		conn *net.Conn
	}{
		{fdOrders, "orders", &g.orders},
		{fdConsole, "console", &g.console},
	} {
		file := os.NewFile(c.fd, c.name)
		conn, err := net.FileConn(file)
		file.Close()
		if err != nil {
			return nil, fmt.Errorf("inherit %s: %w", c.name, err)
		}
		*c.conn = conn
	}
	for _, p := range []struct {
		fd   uintptr
		name string
		port *io.ReadWriteCloser
	}{{fdControl, "control", &g.control}, {fdData, "data", &g.data}} {
		file := os.NewFile(p.fd, p.name)
		port, err := link.HostPort(file)
		file.Close()
		if err != nil {
			return nil, fmt.Errorf("inherit %s: %w", p.name, err)
		}
		*p.port = port
	}
	listener, err := inheritListener(fdListener, "listener")
	if err != nil {
		return nil, err
	}
	g.listener = listener
	g.output, err = logfile.Open(os.NewFile(fdConsoleLog, "console.log"))
	return g, err
}

func inheritListener(fd uintptr, name string) (net.Listener, error) {
	file := os.NewFile(fd, name)
	defer file.Close()
	listener, err := net.FileListener(file)
	if err != nil {
		return nil, fmt.Errorf("inherit %s: %w", name, err)
	}
	return listener, nil
}

func (g *gate) run() error {
	var console sync.WaitGroup
	console.Go(g.keepConsole)
	err := g.obey()
	// What the guest said last is what one wants to read when it died.
	g.console.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
	console.Wait()
	return err
}

// keepConsole reads the console to its end. A log that cannot be written any
// more does not keep the guest from printing.
func (g *gate) keepConsole() {
	_, err := io.Copy(g.output, g.console)
	if err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		return
	}
	g.log.Warn("keep console", "error", err)
	io.Copy(io.Discard, g.console)
}

// obey carries out orders until the monitor closes the connection, which also
// ends an order that is under way.
func (g *gate) obey() error {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	conn := NewConn(g.orders)
	orders, ended := make(chan Order), make(chan error, 1)
	go func() {
		defer cancel()
		ended <- receiveOrders(ctx, conn, orders)
	}()
	for {
		select {
		case order := <-orders:
			if err := conn.Send(g.carryOut(ctx, order)); err != nil && ctx.Err() == nil {
				return fmt.Errorf("report: %w", err)
			}
		case err := <-ended:
			return err
		}
	}
}

func receiveOrders(ctx context.Context, conn *Conn, orders chan<- Order) error {
	for {
		var order Order
		err := conn.Receive(&order)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("receive order: %w", err)
		}
		select {
		case orders <- order:
		case <-ctx.Done():
			return nil
		}
	}
}

func (g *gate) carryOut(ctx context.Context, order Order) (report Report) {
	if order.Limit > 0 {
		limited, cancel := context.WithTimeoutCause(ctx, order.Limit, errors.New("the guest does not answer"))
		defer cancel()
		ctx = limited
	}
	var err error
	switch {
	case order.Begin != nil:
		report, err = g.begin(ctx, order.Begin)
	case order.Policy != nil && g.network != nil:
		report.Killed, err = g.network.setPolicy(*order.Policy)
	case order.Clients:
		report.Clients = int(g.clients.Load())
	case g.client == nil:
		err = errors.New("there is no guest yet")
	case order.PowerOff > 0:
		err = g.client.PowerOff(ctx, order.PowerOff)
	case order.Freeze:
		err = g.client.Freeze(ctx)
	case order.Hold:
		err = g.client.Hold(ctx)
	case order.Thaw:
		// It stood still while it was copied, and so did its clock.
		err = errors.Join(g.host.SetClock(ctx), g.client.Thaw(ctx))
	case order.Resize != 0:
		_, err = g.client.Resize(ctx, order.Resize)
	case order.SetTime:
		err = g.host.SetClock(ctx)
	default:
		err = errors.New("unknown order")
	}
	if err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		report.Error = err.Error()
		var failed *link.FailedError
		report.Failed = errors.As(err, &failed)
	}
	return report
}

// begin tells the guest who it is, waits for it, and opens the socket to it.
func (g *gate) begin(ctx context.Context, b *Begin) (report Report, err error) {
	if g.host != nil {
		return report, errors.New("begun already")
	}
	if g.network != nil {
		if b.Network == nil {
			return report, errors.New("told nothing of the network")
		}
		if err := g.network.begin(*b.Network, g.dialLoopback); err != nil {
			return report, err
		}
	}
	if b.Identity != nil {
		b.Identity.Entropy = make([]byte, entropyBytes)
		rand.Read(b.Identity.Entropy)
	}
	if g.host, err = link.Connect(ctx, g.control, g.data, b.Identity); err != nil {
		return report, err
	}
	g.client = guest.New(g.host.Dial)
	close(g.linked)
	if b.First {
		if err := g.serveFirst(ctx); err != nil {
			return report, err
		}
	}
	go g.serve(ctx)
	return report, nil
}

// serveFirst serves the client that the gate was born with.
func (g *gate) serveFirst(ctx context.Context) error {
	file := os.NewFile(g.first, "first stream")
	client, err := net.FileConn(file)
	file.Close()
	if err != nil {
		return fmt.Errorf("inherit first stream: %w", err)
	}
	go func() {
		if err := g.connect(ctx, client); err != nil {
			g.log.Debug("first stream", "error", err)
		}
	}()
	return nil
}

// entropyBytes is how much randomness a guest is given: the kernel's
// generator holds 32 bytes.
const entropyBytes = 64

// serve hands out streams until the process ends.
func (g *gate) serve(ctx context.Context) {
	places := make(chan struct{}, maxStreams)
	for {
		places <- struct{}{}
		conn, err := g.listener.Accept()
		if err != nil {
			// Whatever it lacks, it may have again later.
			g.log.Warn("accept client", "error", err)
			<-places
			time.Sleep(acceptPause)
			continue
		}
		go func() {
			defer func() { <-places }()
			if err := g.connect(ctx, conn); err != nil {
				g.log.Debug("stream", "error", err)
			}
		}()
	}
}

// connect joins a client and a stream of its own to the guest until both
// have said all they have to say, or either is gone.
func (g *gate) connect(ctx context.Context, client net.Conn) error {
	defer client.Close()
	g.clients.Add(1)
	defer g.clients.Add(-1)
	stream, err := g.host.Dial(ctx)
	if err != nil {
		return err
	}
	defer stream.Close()
	up := make(chan error, 1)
	go func() {
		_, err := copyBuffered(stream, client)
		// A client that is done sending has ended its request.
		sockets.CloseWrite(stream)
		up <- err
	}()
	// A stream writes by itself.
	_, err = io.Copy(client, stream)
	if s, ok := stream.(*link.Stream); err == nil && ok && !s.Gone() {
		// The guest has said all it has to say, and still listens.
		sockets.CloseWrite(client)
	} else {
		client.Close()
	}
	return errors.Join(err, <-up)
}

var buffers = sync.Pool{New: func() any {
	b := make([]byte, 64<<10)
	return &b
}}

func copyBuffered(dst io.Writer, src io.Reader) (int64, error) {
	b := buffers.Get().(*[]byte)
	defer buffers.Put(b)
	return io.CopyBuffer(struct{ io.Writer }{dst}, struct{ io.Reader }{src}, *b)
}
