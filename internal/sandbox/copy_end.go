package sandbox

import (
	"context"
	"io"
	"os"

	"github.com/vmsan/vmsan/internal/filetree"
	"github.com/vmsan/vmsan/internal/guest"
	"github.com/vmsan/vmsan/internal/store"
)

// end is one end of a copy: files of the host, or of a sandbox.
type end struct {
	Location
	path   string
	record *store.Record // nil on the host
	client *guest.Client // nil on the host
}

func (s *Service) end(ctx context.Context, l Location) (*end, error) {
	if l.VM == "" {
		return &end{Location: l, path: l.Path}, nil
	}
	record, err := s.Get(ctx, l.VM)
	if err != nil {
		return nil, err
	}
	client, err := s.Guest(record)
	if err != nil {
		return nil, err
	}
	return &end{Location: l, path: resolveGuestPath(l.Path), record: record, client: client}, nil
}

func (e *end) close() {
	if e.client != nil {
		e.client.Close()
	}
}

// find tells what the path at this end leads to.
func (e *end) find(ctx context.Context) (guest.Found, error) {
	if e.client != nil {
		return e.client.Find(ctx, e.path)
	}
	return findLocal(e.path)
}

// list lists what is at a path at this end.
func (e *end) list(ctx context.Context, path string, o filetree.ListOptions) (map[string]filetree.Entry, error) {
	var entries filetree.Entries
	var err error
	if e.client != nil {
		err = e.client.ListTree(ctx, path, o, entries.Add)
	} else {
		err = fileError(filetree.List(ctx, path, o, entries.Add))
	}
	return entries.ByName, err
}

// read opens a tar stream of what is at this end, its top called name.
func (e *end) read(ctx context.Context, name string, c *copying) (io.ReadCloser, error) {
	switch {
	case e.client != nil:
		return e.client.ReadTree(ctx, e.path, name, c.wanted)
	case e.streams():
		return io.NopCloser(c.Stdin), nil
	}
	r, w := io.Pipe()
	p := &packed{PipeReader: r, done: make(chan struct{})}
	go func() {
		defer close(p.done)
		var err error
		p.totals, err = filetree.Pack(ctx, w, e.path, filetree.PackOptions{Name: name, Wanted: c.wanted, Progress: c.Progress})
		w.CloseWithError(fileError(err))
	}()
	return p, nil
}

// packed is a stream that is packed while it is read.
type packed struct {
	*io.PipeReader
	totals filetree.Totals // after its end
	done   chan struct{}
}

// Close waits until nothing is read any more.
func (p *packed) Close() error {
	err := p.PipeReader.Close()
	<-p.done
	return err
}

// Skipped is what was left out. It is known after the end.
func (p *packed) Skipped() int64 {
	<-p.done
	return p.totals.Skipped
}

// write unpacks a tar stream in a directory at this end, where it may make
// name and nothing else.
func (e *end) write(ctx context.Context, directory, name string, r io.Reader, c *copying) (filetree.Totals, error) {
	switch {
	case e.client != nil:
		return e.client.WriteTree(ctx, directory, r, guest.WriteTreeOptions{Name: name, User: c.User, KeepOwners: c.KeepOwners, Resume: c.Resume})
	case e.streams():
		n, err := io.Copy(c.Stdout, r)
		return filetree.Totals{Bytes: n}, err
	}
	o := filetree.UnpackOptions{Name: name, Progress: c.Progress, Trusted: c.KeepOwners, Resume: c.Resume, Parts: c.wanted}
	if !c.KeepOwners {
		o.Owner = &filetree.Owner{UID: os.Geteuid(), GID: os.Getegid()}
	}
	totals, err := filetree.Unpack(ctx, r, directory, o)
	return totals, fileError(err)
}
