// Package overlay reads what a sandbox has made of its image: the image's
// files, and over them those on the sandbox's own disk, put together as the
// guest's overlayfs does. The disk is hostile.
package overlay

import (
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/vmsan/vmsan/internal/ext4"
)

// upperDir is where the agent has overlayfs write to on a sandbox's disk.
const upperDir = "upper"

// maxFollowed bounds symbolic links in a path, as in Linux.
const maxFollowed = 40

// mounts are directories of the root where the guest has something mounted.
// What a disk has below them are places to mount on.
var mounts = []string{"dev", "proc", "run", "sys"}

// told are the files of a directory, which may be a link, that the agent
// writes when the host says who the guest is.
var (
	toldDir = "etc"
	told    = []string{"hostname", "hosts", "machine-id", "resolv.conf"}
)

// Walk calls visit for each name of each file of an image with a sandbox's
// disk over it, as ext4.Reader's Walk does. What vmsan itself has written to
// the disk is not there: those files are the image's, if it has them.
func Walk(image, disk *ext4.Reader, visit func(path string, n *ext4.File) error) error {
	lower, err := image.Root()
	if err != nil {
		return fmt.Errorf("image: %w", err)
	}
	upper, err := upperRoot(disk)
	if err != nil {
		return fmt.Errorf("disk: %w", err)
	}
	w := walk{visit: visit}
	root, err := merge(upper, lower)
	if err != nil {
		return err
	}
	if err := w.findOwn(root); err != nil {
		return err
	}
	return w.walk("", root)
}

// upperRoot is nil on the disk of a sandbox that never ran.
func upperRoot(disk *ext4.Reader) (*ext4.File, error) {
	root, err := disk.Root()
	if err != nil {
		return nil, err
	}
	upper, err := child(root, upperDir)
	if err == nil && upper != nil && !upper.IsDir() {
		return nil, damaged("it has no directory " + upperDir)
	}
	return upper, err
}

func damaged(what string) error { return fmt.Errorf("%w: %s", ext4.ErrDamaged, what) }

// child returns the directory's file with that name, or nil.
func child(dir *ext4.File, name string) (*ext4.File, error) {
	entries, err := dir.Entries()
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		if e.Name == name {
			return dir.Child(e)
		}
	}
	return nil, nil
}

// node is a file of the guest, and for a directory what it is made of: one of
// the disk, of the image, or both.
type node struct{ seen, upper, lower *ext4.File }

// merge makes a file of what disk and image have under one name; either may be
// nil. Its seen is nil if the disk hides the name.
func merge(upper, lower *ext4.File) (node, error) {
	if lower != nil && isWhiteout(lower) {
		lower = nil
	}
	switch {
	case upper == nil:
		return node{seen: lower, lower: lower}, nil
	case isWhiteout(upper):
		return node{}, nil
	}
	opaque, err := isOpaque(upper)
	if err != nil {
		return node{}, err
	}
	if !upper.IsDir() || lower == nil || !lower.IsDir() || opaque {
		lower = nil
	}
	return node{seen: upper, upper: upper, lower: lower}, nil
}

// isWhiteout tells whether a file is how overlayfs notes that there is none.
func isWhiteout(n *ext4.File) bool {
	return n.Mode&ext4.TypeMask == ext4.TypeChar && n.Major == 0 && n.Minor == 0
}

const attribute = "trusted.overlay."

// isOpaque tells whether a directory of the disk hides the image's. Other
// attributes that change what a guest sees are made by no overlayfs of ours;
// who writes them around it makes no image of that.
func isOpaque(n *ext4.File) (bool, error) {
	for _, name := range []string{"metacopy", "redirect", "whiteout"} {
		if _, ok := n.Xattrs[attribute+name]; ok {
			return false, damaged("it has the attribute " + attribute + name)
		}
	}
	switch value := n.Xattrs[attribute+"opaque"]; value {
	case "":
		return false, nil
	case "y":
		return true, nil
	default:
		return false, damaged(fmt.Sprintf("its attribute %sopaque is %.10q", attribute, value))
	}
}

// entry is a name in a directory that the disk has, the image, or both.
type entry struct {
	name         string
	upper, lower *ext4.Entry
}

type walk struct {
	visit  func(string, *ext4.File) error
	bounds ext4.Bounds
	// own are paths of which only what the image has there counts.
	own map[string]bool
}

// findOwn says which those are.
func (w *walk) findOwn(root node) error {
	w.own = map[string]bool{}
	for _, name := range mounts {
		w.own[name] = true
	}
	dir, ok, err := real(root, toldDir)
	if err != nil || !ok {
		return err
	}
	for _, name := range told {
		w.own[path.Join(dir, name)] = true
	}
	return nil
}

func (w *walk) walk(name string, n node) error {
	if err := w.visit(name, n.seen); err != nil || !n.seen.IsDir() {
		return err
	}
	entries, leave, err := w.enter(n)
	if err != nil {
		return fmt.Errorf("directory /%s: %w", name, err)
	}
	defer leave()
	for _, e := range entries {
		below := path.Join(name, e.name)
		if w.own[below] {
			e.upper = nil
		}
		child, err := n.child(e)
		if err != nil {
			return fmt.Errorf("/%s: %w", below, err)
		}
		if child.seen == nil {
			continue
		}
		if err := w.walk(below, child); err != nil {
			return err
		}
	}
	return nil
}

// enter lists a directory, in order of the names, within the bounds.
func (w *walk) enter(n node) (list []entry, leave func(), err error) {
	depth := 0
	leave = func() {
		for range depth {
			w.bounds.Leave()
		}
	}
	for _, dir := range []*ext4.File{n.upper, n.lower} {
		if dir == nil {
			continue
		}
		found, err := w.bounds.Enter(dir)
		if err != nil {
			leave()
			return nil, nil, err
		}
		depth++
		for i, e := range found {
			if dir == n.upper {
				list = append(list, entry{name: e.Name, upper: &found[i]})
			} else {
				list = append(list, entry{name: e.Name, lower: &found[i]})
			}
		}
	}
	slices.SortStableFunc(list, func(a, b entry) int { return strings.Compare(a.name, b.name) })
	return join(list), leave, nil
}

// child returns what the guest sees as an entry of the directory.
func (n node) child(e entry) (node, error) {
	var upper, lower *ext4.File
	var err error
	if e.upper != nil {
		if upper, err = n.upper.Child(*e.upper); err != nil {
			return node{}, err
		}
	}
	if e.lower != nil {
		if lower, err = n.lower.Child(*e.lower); err != nil {
			return node{}, err
		}
	}
	return merge(upper, lower)
}

// join makes one entry of those with the same name.
func join(list []entry) []entry {
	joined := list[:0]
	for _, e := range list {
		last := len(joined) - 1
		switch {
		case last < 0 || joined[last].name != e.name:
			joined = append(joined, e)
		case joined[last].lower == nil:
			joined[last].lower = e.lower
		}
	}
	return joined
}

// real follows symbolic links, as a guest does, to the path of a directory that
// has none in it.
func real(root node, name string) (clean string, ok bool, err error) {
	dirs, names := []node{root}, []string{}
	rest := strings.Split(name, "/")
	for followed := 0; len(rest) > 0; {
		part := rest[0]
		rest = rest[1:]
		switch part {
		case "", ".":
			continue
		case "..":
			dirs, names = dirs[:max(1, len(dirs)-1)], names[:max(0, len(names)-1)]
			continue
		}
		n, err := step(dirs[len(dirs)-1], part)
		if err != nil || n.seen == nil {
			return "", false, err
		}
		switch n.seen.Mode & ext4.TypeMask {
		case ext4.TypeDir:
			dirs, names = append(dirs, n), append(names, part)
		case ext4.TypeSymlink:
			if followed++; followed > maxFollowed {
				return "", false, nil
			}
			if path.IsAbs(n.seen.Target) {
				dirs, names = dirs[:1], nil
			}
			rest = append(strings.Split(n.seen.Target, "/"), rest...)
		default:
			return "", false, nil
		}
	}
	return path.Join(names...), true, nil
}

// step returns what the guest sees under a name in a directory.
func step(dir node, name string) (node, error) {
	var upper, lower *ext4.File
	var err error
	if dir.upper != nil {
		if upper, err = child(dir.upper, name); err != nil {
			return node{}, err
		}
	}
	if dir.lower != nil {
		if lower, err = child(dir.lower, name); err != nil {
			return node{}, err
		}
	}
	return merge(upper, lower)
}
