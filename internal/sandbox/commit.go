package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/vmsan/vmsan/api"
	"github.com/vmsan/vmsan/internal/image"
	"github.com/vmsan/vmsan/internal/monitor/control"
	"github.com/vmsan/vmsan/internal/scratch"
	"github.com/vmsan/vmsan/internal/store"
)

// maxMessage bounds what is said of an image, in bytes.
const maxMessage = 1000

// CommitOptions say what image to make of a sandbox.
type CommitOptions struct {
	// Name is the image's name. Required.
	Name string
	// Changes are instructions of a Dockerfile that change what the
	// sandbox's image says of how to run it.
	Changes []string
	// Message tells what the image is. Optional.
	Message string
}

// CommitImage makes an image of the files of the sandbox that ref names. One
// that runs goes on meanwhile but for a pause, which is returned.
func (s *Service) CommitImage(ctx context.Context, ref string, o CommitOptions) (img image.Image, pause time.Duration, err error) {
	if _, err := image.ParseName(o.Name); err != nil {
		return img, 0, err
	}
	if len(o.Message) > maxMessage {
		return img, 0, api.Errorf(api.ErrValidationChoice, "Invalid --message: it has %d bytes, at most %d.", len(o.Message), maxMessage).
			WithFlag("--message")
	}
	r, err := s.Get(ctx, ref)
	if err != nil {
		return img, 0, err
	}
	base, err := s.images().Check(r.Spec.Image)
	if err != nil {
		return img, 0, err
	}
	config, err := base.Config.Change(o.Changes)
	if err != nil {
		return img, 0, err
	}
	disk, pause, err := s.stillDisk(ctx, r)
	if err != nil {
		return img, pause, fmt.Errorf("commit %s: %w", r.ID, err)
	}
	defer disk.close()
	source := fmt.Sprintf("VM %s of %s", r.ID, r.Spec.ImageName)
	if o.Message != "" {
		source += ": " + o.Message
	}
	img, err = s.images().Commit(ctx, base.Digest, disk.file, image.Meta{Name: o.Name, Source: source, Config: config})
	if img, err = s.made(api.EventImageCommit, o.Name, img, err); err != nil {
		return img, pause, fmt.Errorf("commit %s: %w", r.ID, err)
	}
	return img, pause, nil
}

// stillDisk is a sandbox's disk, or a copy, that nobody writes to.
type stillDisk struct {
	file  *os.File
	close func()
}

// stillDisk copies the disk of a sandbox that runs, which holds still for that
// long. One that does not cannot be started until the disk is closed; what it
// had on the host may still be being taken back, which is waited for.
func (s *Service) stillDisk(ctx context.Context, r *store.Record) (d stillDisk, pause time.Duration, err error) {
	if r.Running() {
		return s.copiedDisk(ctx, r)
	}
	lock, err := store.AcquireLock(ctx, s.layout.SandboxLock(r.ID))
	if err != nil {
		return d, 0, err
	}
	now, err := s.layout.Load(r.ID)
	if err == nil && now.Spec.Image != r.Spec.Image {
		err = api.Errorf(api.ErrVMBusy, "VM %s has another image now", r.ID).WithVM(r.ID).WithHint("try again")
	}
	if err == nil {
		d.file, err = os.Open(s.layout.Overlay(r.ID))
	}
	if err != nil {
		lock.Release()
		return d, 0, err
	}
	d.close = func() { d.file.Close(); lock.Release() }
	return d, 0, nil
}

func (s *Service) copiedDisk(ctx context.Context, r *store.Record) (d stillDisk, pause time.Duration, err error) {
	dir, err := scratch.New(s.layout.Tmp(), "commit")
	if err != nil {
		return d, 0, scratch.Explain(err)
	}
	copied := dir.Join("overlay.ext4")
	answer, err := control.Dial(s.layout.ControlSocket(r.ID)).Save(ctx, control.SaveRequest{Overlay: copied})
	if errors.Is(err, control.ErrGone) {
		err = died(r.ID)
	}
	if err == nil {
		d.file, err = os.Open(copied)
	}
	if err != nil {
		return d, 0, errors.Join(err, dir.Close())
	}
	d.close = func() {
		d.file.Close()
		if err := dir.Close(); err != nil {
			s.log.Warn("remove the copy of a disk", "error", err)
		}
	}
	return d, answer.Paused, nil
}
