package sandbox

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
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

// ParseLocation tells sandboxes' paths from the host's: the name of a sandbox
// has no slash.
func ParseLocation(text string) Location {
	vm, path, ok := strings.Cut(text, ":")
	if !ok || vm == "" || strings.Contains(vm, "/") {
		return Location{Path: text}
	}
	if path == "" {
		path = "~"
	}
	return Location{VM: vm, Path: path}
}

// CopyOptions say what is copied, and how.
type CopyOptions struct {
	Source, Destination Location
	// KeepOwners gives files the numbers of their owners instead of one owner:
	// the caller on the host, User in a sandbox.
	KeepOwners bool
	// User owns files in a sandbox. Default: the sandbox's own user.
	User string
	// Resume goes on with a copy that broke off; see copying.takeUp.
	Resume bool
	// Into refuses a destination that is not a directory.
	Into bool
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
func (s *Service) Copy(ctx context.Context, o CopyOptions) (api.Copied, error) {
	if o.Source.VM == "" && o.Destination.VM == "" {
		return api.Copied{}, api.Errorf(api.ErrUsage, "neither %.80q nor %.80q is in a sandbox", o.Source.Path, o.Destination.Path).
			WithHint("vmsan cp FILE VM:PATH")
	}
	for _, l := range []Location{o.Source, o.Destination} {
		if l.Path == "" || len(l.Path) > maxPath || strings.ContainsRune(l.Path, 0) {
			return api.Copied{}, api.Errorf(api.ErrValidationPath, "Invalid path: %.80q.", l.Path)
		}
		if o.Resume && l.streams() {
			return api.Copied{}, api.Errorf(api.ErrValidationFlags, "Cannot use --resume with a tar stream").WithFlag("--resume")
		}
	}
	from, err := s.end(ctx, o.Source)
	if err != nil {
		return api.Copied{}, err
	}
	defer from.close()
	to, err := s.end(ctx, o.Destination)
	if err != nil {
		return api.Copied{}, err
	}
	defer to.close()
	c := copying{CopyOptions: o, from: from, to: to}
	totals, err := c.run(ctx)
	for _, e := range []*end{from, to} {
		if err != nil && e.record != nil {
			err = s.Explain(ctx, e.record, err)
		}
	}
	return api.Copied{
		Files: totals.Files, Directories: totals.Directories, Bytes: totals.Bytes, Skipped: totals.Skipped, Kept: c.kept,
	}, err
}

// maxPath is PATH_MAX, in bytes.
const maxPath = 4096

// copying is one copy under way.
type copying struct {
	CopyOptions
	from, to *end
	// wanted is what a resumed copy still lacks, and kept how many files it does
	// not. Nil: all is wanted.
	wanted map[string]filetree.Part
	kept   int64
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
	if c.Resume {
		if err := c.takeUp(ctx, directory, name); err != nil {
			return filetree.Totals{}, err
		}
	}
	r, err := c.from.read(ctx, name, c)
	if err != nil {
		return filetree.Totals{}, err
	}
	defer r.Close()
	totals, err := c.to.write(ctx, directory, name, r, c)
	if err == nil {
		err = drain(r)
	}
	if skipped, ok := r.(interface{ Skipped() int64 }); ok && err == nil {
		totals.Skipped += skipped.Skipped()
	}
	if err == nil && totals.Files+totals.Directories+c.kept == 0 && !c.from.streams() && !c.to.streams() {
		err = api.Errorf(api.ErrFile, "%s is neither a file nor a directory", c.Source)
	}
	return totals, err
}

// maxPadding bounds what stands behind the end of a tar stream, in bytes: GNU
// tar fills up to its blocking factor.
const maxPadding = 1 << 20

// drain reads what is behind the end of the files, for only then a stream says
// how it has ended.
func drain(r io.Reader) error {
	n, err := io.Copy(io.Discard, io.LimitReader(r, maxPadding))
	if err == nil && n == maxPadding {
		err = api.Errorf(api.ErrFile, "the stream goes on behind its end")
	}
	return err
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
	there, err := c.to.find(ctx)
	if err != nil {
		return "", "", err
	}
	if c.from.streams() {
		if there.Kind != guest.Directory {
			return "", "", api.Errorf(api.ErrFile, "%s is not a directory, and only one can take a tar stream", c.Destination)
		}
		return there.Path, "", nil
	}
	source, err := c.from.find(ctx)
	if err != nil {
		return "", "", err
	}
	switch {
	case source.Kind == guest.NoFile:
		return "", "", api.Errorf(api.ErrFileNotFound, "there is no %s", c.Source)
	case there.Kind == guest.SpecialFile:
		return "", "", api.Errorf(api.ErrFile, "%s is a device, a pipe or a socket, and a copy would take its place", c.Destination)
	case there.Kind == guest.Directory:
		directory, name = there.Path, baseName(c.from.path)
	case there.Kind == guest.PlainFile && source.Kind == guest.Directory:
		return "", "", api.Errorf(api.ErrFile, "%s is a directory, and %s is a file", c.Source, c.Destination)
	case there.Kind == guest.NoFile && (c.Into || source.Kind == guest.PlainFile && strings.HasSuffix(c.to.path, "/")):
		return "", "", api.Errorf(api.ErrFileNotFound, "there is no directory %s", c.Destination)
	case there.Kind == guest.PlainFile && c.Into:
		return "", "", api.Errorf(api.ErrFile, "%s is a file, and several cannot be copied to it", c.Destination)
	case there.Kind == guest.PlainFile:
		directory, name = path.Split(there.Path)
	default:
		clean := path.Clean(c.to.path)
		directory, name = path.Dir(clean), path.Base(clean)
	}
	return directory, name, c.checkApart(source.Path, path.Join(directory, name))
}

// checkApart refuses to copy what is in a sandbox into itself, which would
// not end before its disk is full.
func (c *copying) checkApart(source, destination string) error {
	if c.from.record == nil || c.to.record == nil || c.from.record.ID != c.to.record.ID {
		return nil
	}
	if destination == source || strings.HasPrefix(destination, strings.TrimSuffix(source, "/")+"/") {
		return api.Errorf(api.ErrFile, "%s is in %s, and cannot be copied into itself", c.Destination, c.Source)
	}
	return nil
}

// resolveGuestPath makes what is relative so to the home of the user.
func resolveGuestPath(p string) string {
	if path.IsAbs(p) || p == "~" || strings.HasPrefix(p, "~/") {
		return p
	}
	return "~/" + p
}

func findLocal(p string) (guest.Found, error) {
	info, err := os.Stat(p)
	if err == nil && !info.IsDir() && !info.Mode().IsRegular() {
		// What leads to it may not be a path: like /dev/stdout to a pipe.
		return guest.Found{Kind: guest.SpecialFile, Path: p}, nil
	}
	var real string
	if err == nil {
		real, err = filepath.EvalSymlinks(p)
	}
	if err == nil {
		real, err = filepath.Abs(real)
	}
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return guest.Found{}, nil
	case err != nil:
		return guest.Found{}, fileError(err)
	case info.IsDir():
		return guest.Found{Kind: guest.Directory, Path: real}, nil
	}
	return guest.Found{Kind: guest.PlainFile, Path: real}, nil
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
