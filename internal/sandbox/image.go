package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/vmsan/vmsan/api"
	"github.com/vmsan/vmsan/internal/ext4"
	"github.com/vmsan/vmsan/internal/image"
	"github.com/vmsan/vmsan/internal/setup"
	"github.com/vmsan/vmsan/internal/store"
)

// Images returns all images, the newest first.
// Damaged ones are logged.
func (s *Service) Images() ([]image.Image, error) {
	images, broken, err := s.images().List()
	for _, digest := range slices.Sorted(maps.Keys(broken)) {
		s.log.Warn(broken[digest].Error(), "hint", "vmsan image rm sha256:"+digest)
	}
	return images, err
}

// ImageNames returns the digest of every image's name.
func (s *Service) ImageNames() (map[string]string, error) { return s.images().Names() }

// Image returns the image that ref names, or for an empty ref the default.
func (s *Service) Image(ref string) (image.Image, error) {
	if ref != "" {
		return s.images().Resolve(ref)
	}
	ready, err := setup.Load(s.layout)
	if err != nil {
		return image.Image{}, err
	}
	if ready.ImageName == "" {
		return image.Image{}, api.Errorf(api.ErrImageNotFound, "setup was told not to make the default image, and no other was named").
			WithFlag("--image").WithHint("vmsan setup")
	}
	return s.images().Resolve(ready.ImageName)
}

// ImportImage imports what is in the file or directory at path, or if that is
// "-" in stdin.
func (s *Service) ImportImage(ctx context.Context, path string, stdin io.Reader, o image.ImportOptions) (image.Image, error) {
	img, err := s.importImage(ctx, path, stdin, o)
	return s.made(api.EventImageImport, o.Name, img, err)
}

// made tells of an image that was made, or got another name, if it was.
func (s *Service) made(how api.EventType, name string, img image.Image, err error) (image.Image, error) {
	if err == nil {
		s.emit(api.Event{Type: how, Image: name, ImageDigest: img.Digest})
	}
	return img, err
}

func (s *Service) importImage(ctx context.Context, path string, stdin io.Reader, o image.ImportOptions) (image.Image, error) {
	if path == "-" {
		return s.images().Import(ctx, stdin, o)
	}
	f, err := os.Open(path)
	if err != nil {
		return image.Image{}, unreadable(path, err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return image.Image{}, unreadable(path, err)
	}
	if info.IsDir() {
		return s.images().ImportDir(ctx, path, o)
	}
	if ext4.Is(f) {
		return s.images().ImportExt4(ctx, f, o.Meta)
	}
	return s.images().Import(ctx, f, o)
}

func unreadable(path string, err error) error {
	var reason *os.PathError
	if errors.As(err, &reason) {
		err = reason.Err
	}
	return api.Errorf(api.ErrValidationPath, "Cannot read %.200q: %w", path, err)
}

// BuildDebianImage makes an image of Debian packages.
func (s *Service) BuildDebianImage(ctx context.Context, o image.DebianOptions) (image.Image, error) {
	img, err := s.images().BuildDebian(ctx, o)
	return s.made(api.EventImageBuild, o.Name, img, err)
}

// ExportImage writes an image as an OCI image layout.
func (s *Service) ExportImage(ctx context.Context, ref string, w io.Writer) (image.Image, error) {
	img, err := s.images().Export(ctx, ref, w)
	return s.made(api.EventImageExport, ref, img, err)
}

// TagImage gives an image another name.
func (s *Service) TagImage(ctx context.Context, ref, name string) (image.Image, error) {
	img, err := s.images().Tag(ctx, ref, name)
	return s.made(api.EventImageTag, name, img, err)
}

// RemoveImage takes a name off an image, or removes the image; see
// image.Store. Templates of it go too: they can be made again.
func (s *Service) RemoveImage(ctx context.Context, ref string) (image.Removed, error) {
	removed, err := s.images().Remove(ctx, ref, s.checkImageUnused)
	return removed, s.afterRemoval(ctx, removed, err)
}

// afterRemoval removes the templates of an image that was removed.
func (s *Service) afterRemoval(ctx context.Context, removed image.Removed, err error) error {
	if err == nil && (removed.Digest != "" || len(removed.Names) > 0) {
		s.emit(api.Event{Type: api.EventImageRemove, Image: strings.Join(removed.Names, ", "), ImageDigest: removed.Digest})
	}
	if err != nil || removed.Digest == "" {
		return err
	}
	return s.removeTemplatesOf(ctx, removed.Digest)
}

// PruneImages removes the images that nothing uses and that have no name;
// with all those with names too, but for the default one.
func (s *Service) PruneImages(ctx context.Context, all bool) (removed []image.Image, err error) {
	images, err := s.Images()
	if err != nil {
		return nil, err
	}
	kept := ""
	if def, err := s.Image(""); err == nil {
		kept = def.Digest
	}
	for _, img := range images {
		if img.Digest == kept {
			continue
		}
		gone, err := s.pruneImage(ctx, img.Digest, all)
		if api.HasCode(err, api.ErrImageInUse) || api.HasCode(err, api.ErrImageNotFound) {
			continue
		}
		if err != nil {
			return removed, err
		}
		if gone.Digest != "" {
			removed = append(removed, img)
		}
	}
	return removed, nil
}

// pruneImage looks for names once nobody can give one any more: an image that
// was just made, or tagged, is not removed for the name that it had not before.
func (s *Service) pruneImage(ctx context.Context, digest string, named bool) (image.Removed, error) {
	if named {
		return s.RemoveImage(ctx, "sha256:"+digest)
	}
	removed, err := s.images().RemoveUnnamed(ctx, digest, s.checkImageUnused)
	return removed, s.afterRemoval(ctx, removed, err)
}

// checkImageUnused fails if a sandbox or snapshot was made of an image, or if
// that cannot be told.
func (s *Service) checkImageUnused(digest string) error {
	records, broken, err := s.layout.List()
	if err != nil {
		return err
	}
	if len(broken) > 0 {
		return fmt.Errorf("%d records of sandboxes cannot be read, and one may use it", len(broken))
	}
	for _, r := range records {
		if r.Spec.Image != digest {
			continue
		}
		if r.Internal {
			return api.Errorf(api.ErrImageInUse, "it is used by a template that is being made")
		}
		return api.Errorf(api.ErrImageInUse, "it is used by VM %s", r.ID).WithVM(r.ID).WithHint("vmsan rm %s", r.ID)
	}
	snapshots, brokenSnapshots, err := s.snapshots().List()
	if err != nil {
		return err
	}
	if len(brokenSnapshots) > 0 {
		return fmt.Errorf("%d snapshots cannot be read, and one may use it", len(brokenSnapshots))
	}
	for _, m := range snapshots {
		if m.Image == digest {
			return api.Errorf(api.ErrImageInUse, "it is used by snapshot %s", m.ID).WithHint("vmsan snapshot rm %s", m.ID)
		}
	}
	return nil
}

func (s *Service) removeTemplatesOf(ctx context.Context, digest string) error {
	templates, err := s.Templates()
	if err != nil {
		return err
	}
	var failures error
	for _, m := range templates {
		if m.Image == digest {
			_, err := s.DeleteTemplate(ctx, m.ID)
			failures = errors.Join(failures, err)
		}
	}
	return failures
}

// honour fills in what the image wants and o leaves open.
func (o *CreateOptions) honour(c image.Config) error {
	env := map[string]string{}
	for _, e := range c.Env {
		name, value, _ := strings.Cut(e, "=")
		env[name] = value
	}
	maps.Copy(env, o.Env)
	if len(env) > 0 {
		o.Env = env
	}
	setDefault(&o.User, c.User)
	// Builders write "/" where nobody chose a directory.
	if c.Workdir != "/" {
		setDefault(&o.Workdir, c.Workdir)
	}
	return checkEnvSize(env)
}

// maxMain bounds the main process's command in bytes.
const maxMain = 16 << 10

// setMain makes what the image runs the sandbox's main process.
func setMain(spec *store.Spec, c image.Config) error {
	spec.Main = c.Command()
	if len(spec.Main) == 0 || spec.Main[0] == "" {
		return api.Errorf(api.ErrValidationFlags, "image %s has no entrypoint and no command", spec.ImageName).WithFlag("--entrypoint")
	}
	if size := len(strings.Join(spec.Main, " ")); size > maxMain {
		return api.Errorf(api.ErrImageInvalid, "the image's command has %d bytes, at most %d", size, maxMain)
	}
	spec.StopSignal = signalNumber(c.StopSignal)
	return nil
}

// signalNumber is the number of a signal by which images call it, or 0.
func signalNumber(name string) int {
	if n, err := strconv.Atoi(name); err == nil && n >= 0 && n <= 64 {
		return n
	}
	if !strings.HasPrefix(name, "SIG") {
		name = "SIG" + name
	}
	if rest, ok := strings.CutPrefix(name, "SIGRTMIN"); ok {
		const first = 34 // the two before are the C library's
		n, err := strconv.Atoi("0" + strings.TrimPrefix(rest, "+"))
		if err != nil || first+n > 64 {
			return 0
		}
		return first + n
	}
	return int(unix.SignalNum(name))
}
