package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/google/renameio/v2"

	"github.com/vmsan/vmsan/api"
	"github.com/vmsan/vmsan/internal/fault"
	"github.com/vmsan/vmsan/internal/image"
	"github.com/vmsan/vmsan/internal/registry"
	"github.com/vmsan/vmsan/internal/scratch"
)

// PullPolicy says when an image's registry is asked for it.
type PullPolicy string

// The policies.
const (
	PullMissing PullPolicy = "missing" // when the image is not here
	PullAlways  PullPolicy = "always"
	PullNever   PullPolicy = "never"
)

// CheckPullPolicy checks that there is such a policy.
func CheckPullPolicy(p PullPolicy) error {
	switch p {
	case PullMissing, PullAlways, PullNever:
		return nil
	}
	return api.Errorf(api.ErrValidationChoice, "Invalid --pull: %.80q. Must be one of: always, missing, never.", string(p)).WithFlag("--pull")
}

// PullWatch is told what a pull does. Both are optional.
type PullWatch struct {
	// Resolved is called when it is known what the image consists of.
	Resolved func(*registry.Image)
	// Layer is called for each step of each layer, one call at a time.
	Layer func(registry.Progress)
}

// PullImage gets the image that a reference names from its registry. It gets
// the reference as its name. An image that is here already, as the registry
// has it now, is not made again.
func (s *Service) PullImage(ctx context.Context, reference string, watch PullWatch) (image.Image, error) {
	img, err := s.pull(ctx, reference, watch)
	if err != nil && ctx.Err() != nil {
		// Whatever came of it, it was ended from outside.
		return image.Image{}, fmt.Errorf("pull %.200s: %w", reference, ctx.Err())
	}
	if img, err = s.made(api.EventImagePull, reference, img, err); err != nil {
		return image.Image{}, err
	}
	names, err := s.ImageNames()
	if err != nil {
		return image.Image{}, err
	}
	shown := img.Show(names)
	s.hooks().After(ctx, api.HookEvent{Hook: api.HookImageAfterPull, Image: &shown})
	return img, nil
}

func (s *Service) pull(ctx context.Context, reference string, watch PullWatch) (image.Image, error) {
	ref, err := registry.ParseReference(reference)
	if err != nil {
		return image.Image{}, err
	}
	name, err := image.ParseName(ref.Name())
	if err != nil {
		return image.Image{}, err
	}
	config, err := registry.LoadConfig(s.layout.Registries())
	if err != nil {
		return image.Image{}, err
	}
	client := registry.Client{Cache: s.blobs(), Config: config, Arch: runtime.GOARCH}
	remote, err := client.Resolve(ctx, ref)
	if err != nil {
		return image.Image{}, err
	}
	defer remote.Close()
	if watch.Resolved != nil {
		watch.Resolved(remote)
	}
	if img, ok := s.pulled(remote.Digest); ok {
		return s.images().Tag(ctx, "sha256:"+img.Digest, name)
	}
	img, err := s.makePulled(ctx, remote, name, watch.Layer)
	if err != nil {
		return image.Image{}, fmt.Errorf("pull %s: %w", ref.Name(), err)
	}
	return img, nil
}

// blobs has what was pulled.
func (s *Service) blobs() registry.Cache { return registry.Cache{Dir: s.layout.Blobs()} }

// makePulled makes an image of layers while they are still coming.
func (s *Service) makePulled(ctx context.Context, remote *registry.Image, name string, progress func(registry.Progress)) (image.Image, error) {
	config, err := image.ParseConfig(remote.Config)
	if err != nil {
		return image.Image{}, err
	}
	// What a pull that was killed has left is in the way of this one.
	if _, err := scratch.Sweep(s.layout.Tmp()); err != nil {
		s.log.Warn("what was left by others stays", "error", err)
	}
	download, err := remote.Download(ctx, progress)
	if err != nil {
		return image.Image{}, err
	}
	defer download.Close()
	var layers []image.Layer
	for _, l := range remote.Layers {
		layers = append(layers, image.Layer{
			DiffID: l.DiffID, MediaType: l.MediaType,
			Open: func(ctx context.Context) (io.ReadCloser, error) { return download.Open(ctx, l) },
		})
	}
	source := remote.Reference.Name()
	if !strings.Contains(source, "@") {
		source += "@" + remote.Digest
	}
	img, err := s.images().ImportLayers(ctx, layers, image.Meta{Name: name, Source: source, Config: config})
	if err != nil {
		if cause := download.Err(); cause != nil {
			return image.Image{}, cause
		}
		return image.Image{}, err
	}
	if err := fault.After("pull: image made", download.Wait()); err != nil {
		return image.Image{}, err
	}
	return img, s.remember(remote.Digest, img.Digest)
}

// pulled is the image that was made of a manifest, if it is still here.
func (s *Service) pulled(manifest string) (image.Image, bool) {
	digest, err := os.ReadFile(s.layout.Pulled(strings.TrimPrefix(manifest, "sha256:")))
	if err != nil {
		return image.Image{}, false
	}
	img, err := s.images().Check(string(digest))
	return img, err == nil
}

// remember notes what image a manifest became. It is a note that saves work,
// and no more: the same manifest makes the same image.
func (s *Service) remember(manifest, digest string) error {
	path := s.layout.Pulled(strings.TrimPrefix(manifest, "sha256:"))
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("remember what was pulled: %w", err)
	}
	if err := renameio.WriteFile(path, []byte(digest), 0o644); err != nil {
		return fmt.Errorf("remember what was pulled: %w", err)
	}
	return nil
}

// PrunePulled removes the layers that pulls have kept, but for those that are
// being downloaded, and what was noted of images that are gone.
func (s *Service) PrunePulled() (layers int, bytes int64, err error) {
	notes, err := os.ReadDir(s.layout.Pulled(""))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return 0, 0, fmt.Errorf("prune what was pulled: %w", err)
	}
	for _, note := range notes {
		if _, ok := s.pulled(note.Name()); ok {
			continue
		}
		if err := os.Remove(s.layout.Pulled(note.Name())); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return 0, 0, fmt.Errorf("prune what was pulled: %w", err)
		}
	}
	layers, bytes, err = s.blobs().Prune(0)
	if err != nil {
		return layers, bytes, fmt.Errorf("prune layers: %w", err)
	}
	return layers, bytes, nil
}

// BringImage has the image that ref names here, pulling it if the policy says
// so, and returns the name it has here. An empty ref is the default image.
func (s *Service) BringImage(ctx context.Context, ref string, policy PullPolicy, watch PullWatch) (string, error) {
	if err := CheckPullPolicy(policy); err != nil || ref == "" {
		return ref, err
	}
	local, err := s.localImage(ref)
	missing := api.HasCode(err, api.ErrImageNotFound)
	switch {
	case err != nil && !missing:
		return "", err
	case !missing && (policy != PullAlways || !registry.IsReference(ref)):
		return local, nil
	case !registry.IsReference(ref):
		return "", err
	case policy == PullNever:
		return "", api.Errorf(api.ErrImageNotFound, "no image %q", ref).WithHint("vmsan image pull %s", ref)
	}
	if _, err := s.PullImage(ctx, ref, watch); err != nil {
		return "", err
	}
	parsed, err := registry.ParseReference(ref)
	return parsed.Name(), err
}

// localImage finds the name that what ref names has here: as it is written, or
// as a reference.
func (s *Service) localImage(ref string) (string, error) {
	_, err := s.images().Resolve(ref)
	if err == nil {
		return ref, nil
	}
	parsed, bad := registry.ParseReference(ref)
	if bad != nil {
		return "", err
	}
	if _, err := s.images().Resolve(parsed.Name()); err == nil {
		return parsed.Name(), nil
	} else if !api.HasCode(err, api.ErrImageNotFound) && !api.HasCode(err, api.ErrValidationImageRef) {
		return "", err
	}
	return "", api.Errorf(api.ErrImageNotFound, "no image %q", ref)
}
