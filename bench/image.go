package main

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"
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
	v, f := median(ours), median(theirs)
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
	return timed(func() error {
		if err := shell(ctx, fmt.Sprintf("tar -x --numeric-owner -C %s -f %s", tree, archive)); err != nil {
			return err
		}
		return shell(ctx, fmt.Sprintf("mkfs.ext4 -q -d %s %s 512m", tree, disk))
	})
}

// imageMemory imports a large layer from a pipe.
func (b *bench) imageMemory(ctx context.Context, state string) error {
	cmd := exec.CommandContext(ctx, b.vmsan, "--dir", state, "image", "import", "-", "large")
	in, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	var complaint bytes.Buffer
	cmd.Stderr = &complaint
	if err := cmd.Start(); err != nil {
		return err
	}
	writeErr := writeLarge(in)
	in.Close()
	if err := cmd.Wait(); err != nil {
		return fmt.Errorf("import a large layer: %w: %s", err, complaint.String())
	}
	if writeErr != nil {
		return writeErr
	}
	usage := cmd.ProcessState.SysUsage().(*syscall.Rusage)
	b.add("memory of the import of a layer of 4 GiB", fmt.Sprintf("%d MiB", usage.Maxrss>>10), "-", "-", "< 150 MiB")
	return nil
}

// writeLarge writes an archive of one file that is not zeros.
func writeLarge(w io.Writer) error {
	block := make([]byte, 1<<20)
	random := rand.NewChaCha8([32]byte{})
	random.Read(block)
	out := tar.NewWriter(w)
	if err := out.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "large", Mode: 0o644, Size: largeLayer}); err != nil {
		return err
	}
	for range largeLayer / len(block) {
		if _, err := out.Write(block); err != nil {
			return err
		}
	}
	return out.Close()
}
