// Package usage measures what files take on the disk, and what of that they
// share with others, and what processes take. It reads no file's content and
// locks nothing.
package usage

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"syscall"
)

// Use is what some files take, in bytes.
type Use struct {
	Apparent int64 // as large as they look
	Used     int64 // what is allocated for them
	// Shared is the part of Used that files elsewhere have too: as other
	// links to the same file, or as copies that share blocks.
	Shared int64
}

// Unique is what would be free without the files.
func (u Use) Unique() int64 { return u.Used - u.Shared }

// Add adds what other files take.
func (u *Use) Add(o Use) {
	u.Apparent += o.Apparent
	u.Used += o.Used
	u.Shared += o.Shared
}

// Meter measures, and knows what all that it has measured takes together. The
// zero value is ready. It is not safe for concurrent use.
type Meter struct {
	alone  int64               // bytes that no other file has
	seen   map[fileID]struct{} // files with several links
	shared map[uint64][]extent // of each device: blocks that several files have
}

type fileID struct{ device, inode uint64 }

// linked is a file with several links.
type linked struct {
	Use
	found, links uint64
}

// Tree measures the files at path and below. What goes away meanwhile is
// passed over, and a path that is not there takes nothing. Symbolic links are
// not followed.
func (m *Meter) Tree(ctx context.Context, path string) (u Use, err error) {
	several := map[fileID]*linked{}
	err = filepath.WalkDir(path, func(path string, entry fs.DirEntry, err error) error {
		if err == nil {
			err = ctx.Err()
		}
		var info fs.FileInfo
		if err == nil {
			info, err = entry.Info()
		}
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		m.file(path, info, &u, several)
		return nil
	})
	for _, f := range several {
		if f.found < f.links {
			f.Shared = f.Used
		}
		u.Add(f.Use)
	}
	if err != nil {
		return u, fmt.Errorf("measure %s: %w", path, err)
	}
	return u, nil
}

// file measures one file. Those with several links are not counted before all
// of them were looked for.
func (m *Meter) file(path string, info fs.FileInfo, u *Use, several map[fileID]*linked) {
	stat := info.Sys().(*syscall.Stat_t)
	own := Use{Apparent: info.Size(), Used: stat.Blocks * 512}
	if !info.Mode().IsRegular() {
		own.Apparent = 0
		m.alone += own.Used
		u.Add(own)
		return
	}
	id := fileID{uint64(stat.Dev), stat.Ino}
	if f, ok := several[id]; ok {
		f.found++
		return
	}
	if m.known(id, uint64(stat.Nlink)) {
		// All of it is shared with what was measured before.
		several[id] = &linked{Use: own, found: 1, links: uint64(stat.Nlink)}
		return
	}
	extents := sharedExtents(path, own.Used)
	for _, e := range extents {
		own.Shared += e.end - e.start
	}
	own.Shared = min(own.Shared, own.Used)
	m.alone += own.Unique()
	if len(extents) > 0 {
		if m.shared == nil {
			m.shared = map[uint64][]extent{}
		}
		m.shared[id.device] = append(m.shared[id.device], extents...)
	}
	if stat.Nlink > 1 {
		several[id] = &linked{Use: own, found: 1, links: uint64(stat.Nlink)}
		return
	}
	u.Add(own)
}

// known tells whether a file was measured before, which only one with several
// links can be.
func (m *Meter) known(id fileID, links uint64) bool {
	if links < 2 {
		return false
	}
	if _, ok := m.seen[id]; ok {
		return true
	}
	if m.seen == nil {
		m.seen = map[fileID]struct{}{}
	}
	m.seen[id] = struct{}{}
	return false
}

// Total is what all that was measured takes together: what several of them
// share counts once.
func (m *Meter) Total() int64 {
	total := m.alone
	for _, extents := range m.shared {
		total += union(extents)
	}
	return total
}
