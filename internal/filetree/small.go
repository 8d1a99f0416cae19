package filetree

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"time"

	"golang.org/x/sys/unix"
)

// Trees have many small files, and what copying those in a guest takes is system
// calls: here are none that can be done without.

// addSmall packs a regular file that fits into the buffer, if that is all there
// is to it.
func (p *packer) addSmall(directory int, base, name string) (done bool, err error) {
	if part, _ := p.wants(name); part.Offset > 0 {
		return false, nil
	}
	fd, err := retry(func() (int, error) {
		return unix.Openat(directory, base, openFlags|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	})
	if err != nil {
		return false, nil // which the other way will tell
	}
	defer unix.Close(fd)
	var stat unix.Stat_t
	if err := unix.Fstat(fd, &stat); err != nil {
		return false, nil
	}
	if stat.Mode&unix.S_IFMT != unix.S_IFREG || stat.Nlink != 1 || stat.Size == 0 || stat.Size > int64(len(p.buffer)) {
		return false, nil
	}
	h := &tar.Header{
		Typeflag: tar.TypeReg, Name: name, Size: stat.Size, Mode: int64(stat.Mode &^ unix.S_IFMT), Uid: int(stat.Uid), Gid: int(stat.Gid),
		ModTime: time.Unix(stat.Mtim.Unix()), Format: tar.FormatPAX,
	}
	if h.PAXRecords, err = attributes(fd); err != nil {
		return false, fmt.Errorf("read attributes of %s: %w", name, err)
	}
	content := p.buffer[:stat.Size]
	for n := 0; n < len(content); {
		read, err := retry(func() (int, error) { return unix.Read(fd, content[n:]) })
		if err != nil {
			return false, fmt.Errorf("read %s: %w", name, err)
		}
		if read == 0 {
			clear(content[n:])
			break
		}
		n += read
	}
	if err := p.tar.WriteHeader(h); err != nil {
		return false, err
	}
	if _, err := p.tar.Write(content); err != nil {
		return false, err
	}
	p.count(stat.Size)
	return true, nil
}

// smallFile is file for one that fits into the buffer.
func (u *unpacker) smallFile(h *tar.Header) error {
	content := u.buffer[:h.Size]
	if _, err := io.ReadFull(u.tar, content); err != nil {
		return fmt.Errorf("read the stream: %w", err)
	}
	at, err := u.descriptor()
	if err != nil {
		return err
	}
	temporary, d := temporaryName(), u.dressOf(h)
	made := d.mode
	if !d.early() {
		made = 0o600
	}
	// A name without a slash, which is new, leads nowhere else.
	fd, err := retry(func() (int, error) {
		return unix.Openat(at, temporary, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_CLOEXEC, uint32(made.Perm()))
	})
	if err != nil {
		return err
	}
	err = putContent(fd, content)
	if err == nil {
		var has fs.FileMode
		if has, err = u.bornMode(made, fd); err == nil {
			err = u.put(d, fd, has)
		}
	}
	err = errors.Join(err, unix.Close(fd))
	if err == nil {
		err = unix.Renameat(at, temporary, at, path.Base(h.Name))
	}
	if err == unix.EISDIR {
		err = unix.EEXIST // as Root.Rename says it
	}
	if err != nil {
		_ = unix.Unlinkat(at, temporary, 0) // of what is no use
	}
	return err
}

// early tells whether a file may have its mode before it has all else: not if
// its group, which it does not have yet, may do more than everybody; nor with
// attributes, which only root can set on what may not be written (xattr(7)).
func (d dress) early() bool {
	group, others := d.mode>>3&7, d.mode&7
	return len(d.attributes) == 0 && group&^others == 0
}

// bornMode is the mode of a file that was made with one, or unknownMode. It
// looks once for each mode and directory.
func (u *unpacker) bornMode(made fs.FileMode, fd int) (fs.FileMode, error) {
	same, ok := u.born[made]
	if !ok {
		var stat unix.Stat_t
		if err := unix.Fstat(fd, &stat); err != nil {
			return unknownMode, err
		}
		same = stat.Mode&^unix.S_IFMT == modeOf(made)
		u.born[made] = same
	}
	if same {
		return made, nil
	}
	return unknownMode, nil
}

// putContent writes all that an empty file is to hold.
func putContent(fd int, content []byte) error {
	if len(content) > 0 && isZero(content) {
		return persist(func() error { return unix.Ftruncate(fd, int64(len(content))) })
	}
	for len(content) > 0 {
		n, err := retry(func() (int, error) { return unix.Write(fd, content) })
		if n == 0 && err == nil {
			err = io.ErrUnexpectedEOF
		}
		if err != nil {
			return err
		}
		content = content[n:]
	}
	return nil
}

// persist is retry for what has no other outcome.
func persist(do func() error) error {
	_, err := retry(func() (int, error) { return 0, do() })
	return err
}

// retry calls do until no signal interrupts it.
func retry(do func() (int, error)) (int, error) {
	for {
		if n, err := do(); err != unix.EINTR {
			return n, err
		}
	}
}
