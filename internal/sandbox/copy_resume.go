package sandbox

import (
	"context"
	"io/fs"
	"path"

	"github.com/vmsan/vmsan/internal/filetree"
)

// takeUp finds what a copy that broke off has left to do. A file of the size and
// time that the source has is taken for whole, and a link that leads where the
// source's does. Of a file that is not whole the beginning that is kept beside
// its name is said to the source, which goes on behind it if it begins so.
//
// The source hears the names of its own files, and digests of parts that it has
// sent itself: nothing else of what is at the destination.
func (c *copying) takeUp(ctx context.Context, directory, name string) error {
	source, err := c.from.list(ctx, c.from.path, filetree.ListOptions{Name: name})
	if err != nil {
		return err
	}
	there, err := c.to.list(ctx, path.Join(directory, name), filetree.ListOptions{Name: name, Destination: true})
	if err != nil {
		return err
	}
	c.wanted = map[string]filetree.Part{}
	for name, s := range source {
		t, ok := there[name]
		switch {
		case ok && s.Mode.IsRegular() && sameFile(s, t) && s.Modified.Equal(t.Modified), ok && sameLink(s, t):
			c.kept++
		case s.Mode.IsRegular():
			c.wanted[name] = partOf(s, there[filetree.PartialName(name)])
		default:
			c.wanted[name] = filetree.Part{}
		}
	}
	return nil
}

// partOf is what a partial file has of s, if it has something.
func partOf(s, partial filetree.Entry) filetree.Part {
	if !partial.Mode.IsRegular() || partial.Digest == nil || partial.Size > s.Size {
		return filetree.Part{}
	}
	return filetree.Part{Offset: partial.Size, Digest: partial.Digest}
}

// sameFile tells whether two entries are of files of the same kind and size.
func sameFile(a, b filetree.Entry) bool {
	return a.Mode.Type() == b.Mode.Type() && a.Size == b.Size
}

func sameLink(a, b filetree.Entry) bool {
	return a.Mode.Type() == fs.ModeSymlink && b.Mode.Type() == fs.ModeSymlink && a.Target == b.Target
}
