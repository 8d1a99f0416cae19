package fake

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"connectrpc.com/connect"

	"github.com/vmsan/vmsan/internal/guest/proto/guestv1"
	"github.com/vmsan/vmsan/internal/guest/proto/guestv1/guestv1connect"
	"github.com/vmsan/vmsan/internal/link"
	"github.com/vmsan/vmsan/internal/vmm"
)

// guest answers what every guest has to: whether it is well, who it is, and
// that it shall end.
type guest struct {
	guestv1connect.UnimplementedHostHandler

	link     vmm.Link
	powerOff func()
	server   *http.Server
	serving  sync.WaitGroup
	disk     atomic.Int64 // the size of its disk, if that has changed
	still    atomic.Bool  // its commands hold still
	refusals atomic.Int32 // how often it will not let them go on

	mu       sync.Mutex
	identity []link.Identity
	files    map[string]string // what the guest has in its memory
}

// maxFile bounds a file in bytes.
const maxFile = 1 << 20

func (g *guest) serve(listener *link.Guest) {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /health", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) })
	mux.HandleFunc("GET /files", g.download)
	mux.HandleFunc("POST /files", g.upload)
	mux.Handle(guestv1connect.NewHostHandler(g))
	g.server = &http.Server{Handler: mux}
	g.serving.Go(func() { g.server.Serve(listener) })
}

// close ends the guest and gives its ports back.
func (g *guest) close() {
	if g.server != nil {
		g.server.Close()
		g.serving.Wait()
	}
	g.link.Close()
}

func (g *guest) download(w http.ResponseWriter, r *http.Request) {
	g.mu.Lock()
	defer g.mu.Unlock()
	text, ok := g.files[r.URL.Query().Get("path")]
	if !ok {
		http.NotFound(w, r)
		return
	}
	io.WriteString(w, text)
}

func (g *guest) upload(w http.ResponseWriter, r *http.Request) {
	text, err := io.ReadAll(io.LimitReader(r.Body, maxFile))
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.files == nil {
		g.files = map[string]string{}
	}
	g.files[r.URL.Query().Get("path")] = string(text)
}

// SetClock implements link.Self.
func (g *guest) SetClock(time.Time, bool) error { return nil }

// Identify implements link.Self.
func (g *guest) Identify(id link.Identity) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.identity = append(g.identity, id)
	return nil
}

// PowerOff implements guestv1connect.HostHandler.
func (g *guest) PowerOff(context.Context, *connect.Request[guestv1.PowerOffRequest]) (*connect.Response[guestv1.PowerOffResponse], error) {
	// The answer goes first.
	time.AfterFunc(5*time.Millisecond, g.powerOff)
	return connect.NewResponse(&guestv1.PowerOffResponse{}), nil
}

// Freeze implements guestv1connect.HostHandler.
func (g *guest) Freeze(context.Context, *connect.Request[guestv1.FreezeRequest]) (*connect.Response[guestv1.FreezeResponse], error) {
	g.still.Store(true)
	return connect.NewResponse(&guestv1.FreezeResponse{}), nil
}

// Thaw implements guestv1connect.HostHandler.
func (g *guest) Thaw(context.Context, *connect.Request[guestv1.ThawRequest]) (*connect.Response[guestv1.ThawResponse], error) {
	if g.refusals.Add(-1) >= 0 {
		return nil, connect.NewError(connect.CodeInternal, errors.New("not now"))
	}
	g.still.Store(false)
	return connect.NewResponse(&guestv1.ThawResponse{}), nil
}

// HoldsStill tells whether the guest was asked to hold still, and not yet to go on.
func (vm *Machine) HoldsStill() bool { return vm.guest.still.Load() }

// RefuseThaw has the guest fail the next times that it is asked to go on.
func (vm *Machine) RefuseThaw(times int) { vm.guest.refusals.Store(int32(times)) }

// Resize implements guestv1connect.HostHandler.
func (g *guest) Resize(_ context.Context, request *connect.Request[guestv1.ResizeRequest]) (*connect.Response[guestv1.ResizeResponse], error) {
	size := uint64(g.disk.Load())
	if size < request.Msg.GetBytes() {
		return nil, connect.NewError(connect.CodeInternal, fmt.Errorf("the disk has %d bytes", size))
	}
	return connect.NewResponse(&guestv1.ResizeResponse{Bytes: size}), nil
}

// Identities are those that the guest was given, oldest first.
func (vm *Machine) Identities() []link.Identity {
	vm.guest.mu.Lock()
	defer vm.guest.mu.Unlock()
	return slices.Clone(vm.guest.identity)
}

// pausable is what a guest's CPUs are to its ports: while they stand still,
// nothing is read or written.
type pausable struct {
	mu      sync.Mutex
	changed *sync.Cond
	paused  bool
}

func newPausable() *pausable {
	p := &pausable{}
	p.changed = sync.NewCond(&p.mu)
	return p
}

func (p *pausable) shut() { p.set(true) }
func (p *pausable) open() { p.set(false) }

func (p *pausable) set(paused bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.paused = paused
	p.changed.Broadcast()
}

// wait returns while the guest runs.
func (p *pausable) wait() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for p.paused {
		p.changed.Wait()
	}
}

func (p *pausable) isShut() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.paused
}

// port is the guest's end of a port.
type port struct {
	*os.File
	cpus *pausable
}

func (p *pausable) port(f *os.File) port { return port{f, p} }

func (p port) Read(b []byte) (int, error) {
	n, err := p.File.Read(b)
	p.cpus.wait()
	return n, err
}

func (p port) Write(b []byte) (int, error) {
	p.cpus.wait()
	return p.File.Write(b)
}
