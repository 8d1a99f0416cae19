package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/vmsan/vmsan/bench/floor/request"
	"github.com/vmsan/vmsan/internal/disk"
	"github.com/vmsan/vmsan/internal/image"
	"github.com/vmsan/vmsan/internal/initramfs"
	"github.com/vmsan/vmsan/internal/kernel"
	"github.com/vmsan/vmsan/internal/setup"
	"github.com/vmsan/vmsan/internal/store"
	"github.com/vmsan/vmsan/internal/timing"
	"github.com/vmsan/vmsan/internal/vmm"
	"github.com/vmsan/vmsan/internal/vmm/qemu"
)

// memoryMiB and vcpus are vmsan's defaults.
const (
	memoryMiB = 256
	vcpus     = 1
)

// floor starts bare machines.
type floor struct {
	dir     string
	kernel  string
	image   string
	overlay string
	initrd  string
	accel   string
}

func newFloor(state string) (*floor, error) {
	layout, err := store.NewLayout(state)
	if err != nil {
		return nil, err
	}
	record, err := setup.Load(layout)
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "vmsan-floor-")
	if err != nil {
		return nil, err
	}
	f := &floor{
		dir: dir, accel: record.Accel,
		kernel:  kernel.VmlinuxPath(layout, record.Kernel),
		image:   image.Store{Layout: layout}.RootfsPath(record.Image),
		overlay: filepath.Join(dir, "overlay"),
		initrd:  filepath.Join(dir, "initramfs"),
	}
	blank, err := disk.EnsureBlank(context.Background(), layout, 10<<30)
	if err != nil {
		return nil, err
	}
	if _, err := disk.Clone(context.Background(), f.overlay, blank); err != nil {
		return nil, err
	}
	return f, f.makeInitramfs(kernel.InitramfsPath(layout, record.Kernel))
}

func (f *floor) close() { os.RemoveAll(f.dir) }

// makeInitramfs puts the floor's init in the place of vmsan's agent.
func (f *floor) makeInitramfs(vmsans string) error {
	source, err := os.Open(vmsans)
	if err != nil {
		return err
	}
	defer source.Close()
	spec, err := initramfs.Read(source)
	if err != nil {
		return err
	}
	init := filepath.Join(f.dir, "init")
	build := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", init, "./bench/floor")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("build floor's init: %w: %s", err, out)
	}
	if spec.Agent, err = os.ReadFile(init); err != nil {
		return err
	}
	var out bytes.Buffer
	if err := initramfs.Write(&out, spec); err != nil {
		return err
	}
	return os.WriteFile(f.initrd, out.Bytes(), 0o600)
}

// machine is a floor that runs.
type machine struct {
	vm      vmm.VM
	console net.Conn
	data    net.Conn
}

// start starts a machine; boot is how long it took to the first byte.
func (f *floor) start(ctx context.Context) (m *machine, boot time.Duration, err error) {
	base, err := os.Open(f.image)
	if err != nil {
		return nil, 0, err
	}
	defer base.Close()
	overlay, err := os.OpenFile(f.overlay, os.O_RDWR, 0)
	if err != nil {
		return nil, 0, err
	}
	defer overlay.Close()
	began := time.Now()
	vm, err := qemu.Driver{}.Start(ctx, f.spec(base, overlay))
	if err != nil {
		return nil, 0, err
	}
	m = &machine{vm: vm}
	if m.console, err = net.FileConn(vm.Link().Console); err == nil {
		m.data, err = net.FileConn(vm.Link().Data)
	}
	if err == nil {
		err = awaitByte(m.console, request.Booted)
	}
	if err != nil {
		return nil, 0, errors.Join(err, vm.Stop(ctx))
	}
	boot = time.Since(began)
	go io.Copy(os.Stderr, m.console)
	return m, boot, nil
}

func (f *floor) spec(image, overlay *os.File) vmm.Spec {
	return vmm.Spec{
		ID: "floor", VCPUs: vcpus, MemoryMiB: memoryMiB, Accelerator: vmm.Accelerator(f.accel),
		Kernel: f.kernel, Initramfs: f.initrd,
		Disks: []vmm.Disk{{Name: "image", File: image, ReadOnly: true}, {Name: "overlay", File: overlay}},
		Log:   os.Stderr,
	}
}

func awaitByte(r io.Reader, want byte) error {
	buf := make([]byte, 4096)
	for {
		n, err := r.Read(buf)
		if bytes.IndexByte(buf[:n], want) >= 0 {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// ask sends a request and waits for its answer.
func (m *machine) ask(what byte) error {
	m.data.SetDeadline(time.Now().Add(time.Minute))
	if _, err := m.data.Write([]byte{what}); err != nil {
		return err
	}
	answer := make([]byte, 1)
	if _, err := io.ReadFull(m.data, answer); err != nil {
		return err
	}
	if answer[0] != what {
		return fmt.Errorf("the floor answered %q to %q", answer, what)
	}
	return nil
}

// produce reads what the guest writes on request: Dump or Produce.
func (m *machine) produce(how byte) (time.Duration, error) {
	m.data.SetDeadline(time.Now().Add(5 * time.Minute))
	began := time.Now()
	if _, err := m.data.Write([]byte{how}); err != nil {
		return 0, err
	}
	buf := make([]byte, 256<<10)
	for got := 0; got < request.DumpBytes; {
		n, err := m.data.Read(buf)
		if err != nil {
			return 0, err
		}
		got += n
	}
	return time.Since(began), nil
}

// consume has the guest read what is written to it.
func (m *machine) consume() (time.Duration, error) {
	m.data.SetDeadline(time.Now().Add(5 * time.Minute))
	return timing.Timed(func() error {
		if _, err := m.data.Write([]byte{request.Sink}); err != nil {
			return err
		}
		zeros := make([]byte, 256<<10)
		for sent := 0; sent < request.DumpBytes; sent += len(zeros) {
			if _, err := m.data.Write(zeros); err != nil {
				return err
			}
		}
		return awaitByte(m.data, request.Sink)
	})
}

func (m *machine) stop(ctx context.Context) error { return m.vm.Stop(ctx) }
