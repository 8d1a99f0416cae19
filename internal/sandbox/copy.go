package sandbox

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"
	"syscall"

	"github.com/vmsan/vmsan/api"
	"github.com/vmsan/vmsan/internal/filetree"
	"github.com/vmsan/vmsan/internal/guest"
)

// Location is one end of a copy.
type Location struct {
	// VM names a sandbox; empty: the host.
	VM string
	// Path is a file or directory; "-" on the host is a tar stream.
	Path string
}

// stream is the path of a tar stream on stdin or stdout.
const stream = "-"

func (l Location) streams() bool { return l.VM == "" && l.Path == stream }

func (l Location) String() string {
	if l.VM == "" {
		return l.Path
	}
	return l.VM + ":" + l.Path
}

// CopyOptions say what is copied, and how.
type CopyOptions struct {
	Source, Destination Location
	// KeepOwners gives files the numbers of their owners instead of one owner:
	// the caller on the host, User in a sandbox.
	KeepOwners bool
	// User owns files in a sandbox. Default: the sandbox's own user.
	User string
	// Stdin and Stdout are for tar streams.
	Stdin  io.Reader
	Stdout io.Writer
	// Progress is told what has arrived on the host, or was sent from it.
	// Optional.
	Progress filetree.Progress
}

// Copy copies files and trees between the host and sandboxes, or from one
// sandbox to another. The names of copies are as cp(1) has them: into a
// directory that is there, or else under the name that the destination gives.
// A source that ends in "/." is what is in a directory.
func (s *Service) Copy(ctx context.Context, o CopyOptions) (filetree.Totals, error) {
	if o.Source.VM == "" && o.Destination.VM == "" {
		return filetree.Totals{}, api.Errorf(api.ErrUsage, "neither %.80q nor %.80q is in a sandbox", o.Source.Path, o.Destination.Path).
			WithHint("vmsan cp FILE VM:PATH")
	}
	for _, l := range []Location{o.Source, o.Destination} {
		if l.Path == "" || len(l.Path) > maxPath || strings.ContainsRune(l.Path, 0) {
			return filetree.Totals{}, api.Errorf(api.ErrValidationPath, "Invalid path: %.80q.", l.Path)
		}
	}
	from, err := s.end(ctx, o.Source)
	if err != nil {
		return filetree.Totals{}, err
	}
	defer from.close()
	to, err := s.end(ctx, o.Destination)
	if err != nil {
		return filetree.Totals{}, err
	}
	defer to.close()
	c := copying{CopyOptions: o, from: from, to: to}
	totals, err := c.run(ctx)
	for _, e := range []*end{from, to} {
		if err != nil && e.record != nil {
			err = s.Explain(ctx, e.record, err)
		}
	}
	return totals, err
}

// maxPath is PATH_MAX, in bytes.
const maxPath = 4096

// copying is one copy under way.
type copying struct {
	CopyOptions
	from, to *end
}

func (c *copying) run(ctx context.Context) (filetree.Totals, error) {
	directory, name := c.to.path, ""
	if !c.to.streams() {
		var err error
		if directory, name, err = c.place(ctx); err != nil {
			return filetree.Totals{}, err
		}
	} else {
		name = baseName(c.from.path)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	r, err := c.from.read(ctx, name, c)
	if err != nil {
		return filetree.Totals{}, err
	}
	defer r.Close()
	totals, err := c.to.write(ctx, directory, name, r, c)
	if skipped, ok := r.(interface{ Skipped() int64 }); ok && err == nil {
		totals.Skipped += skipped.Skipped()
	}
	if err == nil && totals.Files+totals.Directories == 0 && !c.from.streams() && !c.to.streams() {
		err = api.Errorf(api.ErrFile, "%s is neither a file nor a directory", c.Source)
	}
	return totals, err
}

// baseName is what the copy of a path is called in a directory; "." if it is
// to have none, as the path says or because it does not end in a name.
func baseName(p string) string {
	switch base := path.Base(path.Clean(p)); {
	case base == "/", base == "..", base == "~", strings.HasSuffix(p, "/."):
		return "."
	default:
		return base
	}
}

// place is the directory that the copy is put in, and its name there.
func (c *copying) place(ctx context.Context) (directory, name string, err error) {
	there, err := c.to.kind(ctx)
	if err != nil {
		return "", "", err
	}
	if c.from.streams() {
		if there != guest.Directory {
			return "", "", api.Errorf(api.ErrFile, "%s is not a directory, and only one can take a tar stream", c.Destination)
		}
		return c.to.path, "", nil
	}
	source, err := c.from.kind(ctx)
	if err != nil {
		return "", "", err
	}
	name = baseName(c.from.path)
	switch {
	case source == guest.NoFile:
		return "", "", api.Errorf(api.ErrFileNotFound, "there is no %s", c.Source)
	case there == guest.Directory:
		return c.to.path, name, nil
	case there == guest.PlainFile && source == guest.Directory:
		return "", "", api.Errorf(api.ErrFile, "%s is a directory, and %s is a file", c.Source, c.Destination)
	case there == guest.NoFile && source == guest.PlainFile && strings.HasSuffix(c.to.path, "/"):
		return "", "", api.Errorf(api.ErrFileNotFound, "there is no directory %s", c.Destination)
	}
	clean := path.Clean(c.to.path)
	return path.Dir(clean), path.Base(clean), nil
}

// resolveGuestPath makes what is relative so to the home of the user.
func resolveGuestPath(p string) string {
	if path.IsAbs(p) || p == "~" || strings.HasPrefix(p, "~/") {
		return p
	}
	return "~/" + p
}

func localKind(p string) (guest.FileKind, error) {
	info, err := os.Stat(p)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return guest.NoFile, nil
	case err != nil:
		return guest.NoFile, fileError(err)
	case info.IsDir():
		return guest.Directory, nil
	}
	return guest.PlainFile, nil
}

// fileError gives what the host says of a file a code.
func fileError(err error) error {
	var coded *api.Error
	switch {
	case err == nil || errors.As(err, &coded) || errors.Is(err, context.Canceled):
		return err
	case errors.Is(err, fs.ErrNotExist):
		return api.Errorf(api.ErrFileNotFound, "%w", err)
	case errors.Is(err, fs.ErrPermission):
		return api.Errorf(api.ErrPermission, "%w", err)
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return api.Errorf(api.ErrDiskFull, "%w", err)
	}
	return api.Errorf(api.ErrFile, "%w", err)
}
