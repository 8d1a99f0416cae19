package main

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/vmsan/vmsan/api"
	"github.com/vmsan/vmsan/internal/timing"
)

// sized are the images whose sandboxes are compared, the floor first.
var sized = [2]struct {
	name  string
	bytes int64
}{{"bench/small", 5_000_000}, {"bench/large", 2_000_000_000}}

// size measures what sandboxes take whose images differ in nothing but their
// size, in turns. The floor has the small one.
func (b *bench) size(ctx context.Context) error {
	defer b.command(ctx, b.state, nil, "image", "rm", sized[0].name, sized[1].name)
	for _, img := range sized {
		if err := b.importSized(ctx, img.name, img.bytes); err != nil {
			return err
		}
	}
	var colds, warms [2][]time.Duration
	for range b.rounds {
		for i, img := range sized {
			took, err := b.command(ctx, b.state, nil, "run", "--cold", "--network", "none", img.name, "--", "/busybox", "true")
			if err != nil {
				return err
			}
			colds[i] = append(colds[i], took)
		}
	}
	for _, img := range sized {
		if err := b.awaitTemplate(ctx, img.name); err != nil {
			return err
		}
	}
	for range quick {
		for i, img := range sized {
			took, err := b.createOf(ctx, img.name)
			if err != nil {
				return err
			}
			warms[i] = append(warms[i], took)
		}
	}
	for _, c := range []struct {
		what string
		took [2][]time.Duration
	}{{"cold run", colds}, {"create from a template", warms}} {
		v, f := timing.Median(c.took[1]), timing.Median(c.took[0])
		b.add(c.what+" of an image of 2 GB; floor: one of 5 MB", ms(v), ms(f), ratio(v, f), "<= 1.1 x")
	}
	return nil
}

// importSized makes an image of busybox and one other file.
func (b *bench) importSized(ctx context.Context, name string, size int64) error {
	program, err := os.ReadFile("/bin/busybox")
	if err != nil {
		return err
	}
	_, err = b.importStream(ctx, b.state, name, func(w io.Writer) error {
		out := tar.NewWriter(w)
		if err := out.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "busybox", Mode: 0o755, Size: int64(len(program))}); err != nil {
			return err
		}
		if _, err := out.Write(program); err != nil {
			return err
		}
		return errors.Join(writeLarge(out, size-int64(len(program))), out.Close())
	})
	return err
}

// createOf makes a sandbox of an image and removes it.
func (b *bench) createOf(ctx context.Context, image string) (time.Duration, error) {
	var id bytes.Buffer
	took, err := b.command(ctx, b.state, &id, "create", "--network", "none", "--image", image)
	if err != nil {
		return 0, err
	}
	_, err = b.command(ctx, b.state, nil, "rm", "-f", strings.TrimSpace(id.String()))
	return took, err
}

// awaitTemplate makes a sandbox of an image, and waits until others can start
// from what is made beside it.
func (b *bench) awaitTemplate(ctx context.Context, image string) error {
	if _, err := b.createOf(ctx, image); err != nil {
		return err
	}
	for deadline := time.Now().Add(2 * time.Minute); time.Now().Before(deadline); time.Sleep(time.Second) {
		var text bytes.Buffer
		if _, err := b.command(ctx, b.state, &text, "--json", "template", "list"); err != nil {
			return err
		}
		var templates []api.Snapshot
		if err := json.Unmarshal(text.Bytes(), &templates); err != nil {
			return err
		}
		for _, t := range templates {
			if t.Image == image {
				return nil
			}
		}
	}
	return fmt.Errorf("there is no template of %s after two minutes", image)
}
