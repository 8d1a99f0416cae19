package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Lock is a flock(2) on a file: the kernel lets it go when the last process
// that has the file open dies, so its being free proves that the holder is
// gone.
type Lock struct{ file *os.File }

// lockWait bounds the wait for a lock whose holder only does a little work.
const lockWait = 30 * time.Second

var errLockWait = errors.New("the lock was not free in time")

// AcquireLock takes the lock at path, which is made if need be, and waits
// for it until ctx ends, for 30 seconds at most.
func AcquireLock(ctx context.Context, path string) (*Lock, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, lockWait, errLockWait)
	defer cancel()
	file, err := openLock(path)
	if err != nil {
		return nil, err
	}
	taken := make(chan error, 1)
	go func() { taken <- flock(file, unix.LOCK_EX) }()
	select {
	case err = <-taken:
	case <-ctx.Done():
		// The waiting thread is left to the kernel: it has the file for
		// itself, and lets go of the lock as soon as it gets it.
		go func() {
			<-taken
			file.Close()
		}()
		if err = context.Cause(ctx); err == errLockWait {
			err = lockTimeout(path)
		}
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	if err != nil {
		file.Close()
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	return &Lock{file}, nil
}

// TryLock takes the lock at path if it is free. held is true if somebody
// else has it.
func TryLock(path string) (lock *Lock, held bool, err error) {
	file, err := openLock(path)
	if err != nil {
		return nil, false, err
	}
	err = flock(file, unix.LOCK_EX|unix.LOCK_NB)
	switch {
	case err == nil:
		return &Lock{file}, false, nil
	case errors.Is(err, unix.EWOULDBLOCK):
		file.Close()
		return nil, true, nil
	}
	file.Close()
	return nil, false, fmt.Errorf("lock %s: %w", path, err)
}

// AwaitLock waits until nobody holds the lock at path, which has to exist, or
// ctx ends.
func AwaitLock(ctx context.Context, path string) error {
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	free := make(chan error, 1)
	go func() {
		err := flock(file, unix.LOCK_SH)
		// Let go of it first: whoever waited may want it for itself next.
		file.Close()
		free <- err
	}()
	select {
	case err := <-free:
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func openLock(path string) (*os.File, error) {
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open lock: %w", err)
	}
	return file, nil
}

func flock(file *os.File, how int) error {
	for {
		if err := unix.Flock(int(file.Fd()), how); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// InheritLock takes over a lock whose file a parent handed down.
func InheritLock(file *os.File) *Lock { return &Lock{file} }

// File is the lock as a file, to hand to a child: the lock is free when both
// have closed it.
func (l *Lock) File() *os.File { return l.file }

// Release lets the lock go. It may be called on nil.
func (l *Lock) Release() {
	if l != nil {
		l.file.Close()
	}
}

func owner(info fs.FileInfo) uint32 { return info.Sys().(*syscall.Stat_t).Uid }
