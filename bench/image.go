package main

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"github.com/vmsan/vmsan/internal/timing"
)

// largeLayer is the size of the layer that memory is measured with.
const largeLayer = 4 << 30

// image measures how long a root file system takes from an archive, which is
// in the page cache, to what boots. The floor unpacks it and has mkfs.ext4 read
// the files.
func (b *bench) image(ctx context.Context) error {
	dir, err := os.MkdirTemp(b.state, "bench-image-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	archive := filepath.Join(dir, "rootfs.tar")
	if err := b.debianLayer(ctx, dir, archive); err != nil {
		return err
	}
	info, err := os.Stat(archive)
	if err != nil {
		return err
	}
	var ours, theirs []time.Duration
	for range b.rounds {
		state := filepath.Join(dir, "state")
		took, err := b.command(ctx, state, nil, "image", "import", archive, "bench")
		if err != nil {
			return err
		}
		floor, err := unpackAndMake(ctx, dir, archive)
		if err != nil {
			return err
		}
		if err := os.RemoveAll(state); err != nil {
			return err
		}
		ours, theirs = append(ours, took), append(theirs, floor)
	}
	v, f := timing.Median(ours), timing.Median(theirs)
	b.add(fmt.Sprintf("image of a Debian layer, %d MB; floor: tar -x and mkfs.ext4 -d", info.Size()/1e6), ms(v), ms(f),
		fmt.Sprintf("%.1f x faster", f.Seconds()/v.Seconds()), ">= 4 x faster")
	return b.imageMemory(ctx, filepath.Join(dir, "state"))
}

// debianLayer writes the default image's files as an archive.
func (b *bench) debianLayer(ctx context.Context, dir, archive string) error {
	whole := filepath.Join(dir, "image.tar")
	if _, err := b.command(ctx, b.state, nil, "image", "export", "debian", whole); err != nil {
		return err
	}
	defer os.Remove(whole)
	return shell(ctx, fmt.Sprintf("tar -x -O -f %s $(tar -tv -f %s | sort -n -k3 | tail -1 | sed 's/.* //') >%s", whole, whole, archive))
}

func shell(ctx context.Context, script string) error {
	if out, err := exec.CommandContext(ctx, "sh", "-c", script).CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", script, err, out)
	}
	return nil
}

func unpackAndMake(ctx context.Context, dir, archive string) (time.Duration, error) {
	tree, disk := filepath.Join(dir, "tree"), filepath.Join(dir, "disk")
	defer os.RemoveAll(tree)
	defer os.Remove(disk)
	if err := os.Mkdir(tree, 0o755); err != nil {
		return 0, err
	}
	return timing.Timed(func() error {
		if err := shell(ctx, fmt.Sprintf("tar -x --numeric-owner -C %s -f %s", tree, archive)); err != nil {
			return err
		}
		return shell(ctx, fmt.Sprintf("mkfs.ext4 -q -d %s %s 512m", tree, disk))
	})
}

// imageMemory imports a large layer from a pipe.
func (b *bench) imageMemory(ctx context.Context, state string) error {
	made, err := b.importStream(ctx, state, "large", func(w io.Writer) error {
		out := tar.NewWriter(w)
		return errors.Join(writeLarge(out, largeLayer), out.Close())
	})
	if err != nil {
		return err
	}
	usage := made.SysUsage().(*syscall.Rusage)
	b.add("memory of the import of a layer of 4 GiB", fmt.Sprintf("%d MiB", usage.Maxrss>>10), "-", "-", "< 150 MiB")
	return nil
}

// importStream imports an archive while it is written.
func (b *bench) importStream(ctx context.Context, state, name string, write func(io.Writer) error) (*os.ProcessState, error) {
	cmd := exec.CommandContext(ctx, b.vmsan, "--dir", state, "image", "import", "-", name)
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	var complaint bytes.Buffer
	cmd.Stderr = &complaint
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	writeErr := write(in)
	in.Close()
	if err := cmd.Wait(); err != nil {
		return nil, fmt.Errorf("import %s: %w: %s", name, err, complaint.String())
	}
	return cmd.ProcessState, writeErr
}

// writeLarge writes a file that is not zeros.
func writeLarge(out *tar.Writer, size int64) error {
	block := make([]byte, 1<<20)
	random := rand.NewChaCha8([32]byte{})
	random.Read(block)
	if err := out.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "large", Mode: 0o644, Size: size}); err != nil {
		return err
	}
	for left := size; left > 0; left -= int64(len(block)) {
		if _, err := out.Write(block[:min(left, int64(len(block)))]); err != nil {
			return err
		}
	}
	return nil
}
