package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmsan/vmsan/api"
	"github.com/vmsan/vmsan/internal/timing"
	"github.com/vmsan/vmsan/internal/vmm/firecracker/contract"
)

// firecracker measures the host's part of a start, from the record until
// InstanceStart is accepted, beside a jailer that is started by hand, until
// Firecracker listens. Both are the contract's, so that there is a figure
// without KVM too.
func (b *bench) firecracker(ctx context.Context) (err error) {
	programs, err := contract.Build(contract.Version)
	if err != nil {
		return err
	}
	defer os.RemoveAll(programs)
	state := b.state + "-firecracker"
	// Hard links, as the tests have them.
	if out, err := exec.CommandContext(ctx, "cp", "-al", b.state, state).CombinedOutput(); err != nil {
		return fmt.Errorf("copy %s: %w: %s", b.state, err, out)
	}
	defer os.RemoveAll(state)
	if _, err := b.command(ctx, state, nil, "setup", "--quiet", "--no-image", "--firecracker-dir", programs); err != nil {
		return err
	}
	var ours, theirs []time.Duration
	for range quick {
		alone, err := jailerAlone(ctx, programs)
		if err != nil {
			return err
		}
		took, err := b.hostPart(ctx, state)
		if err != nil {
			return err
		}
		theirs, ours = append(theirs, alone), append(ours, took)
	}
	v, f := timing.Median(ours), timing.Median(theirs)
	b.add("host's part of a start of Firecracker; floor: its jailer alone", ms(v), ms(f), ms(v-f)+" more", "<= 25 ms more")
	return nil
}

// hostPart creates a sandbox and adds up its stages.
func (b *bench) hostPart(ctx context.Context, state string) (total time.Duration, err error) {
	var out bytes.Buffer
	if _, err := b.command(ctx, state, &out, "create", "--json", "--cold", "--driver", "firecracker"); err != nil {
		return 0, err
	}
	var vm api.VM
	if err := json.Unmarshal(out.Bytes(), &vm); err != nil {
		return 0, err
	}
	counts := map[string]bool{"record": true, "host": true, "network": true, "vmm": true}
	for _, s := range vm.Trace {
		if counts[s.Name] {
			total += time.Duration(s.Milliseconds * float64(time.Millisecond))
		}
	}
	_, err = b.command(ctx, state, nil, "rm", "-f", vm.ID)
	return total, err
}

// jailerAlone starts a jailer in memory and in new namespaces, as sandboxes have
// it.
func jailerAlone(ctx context.Context, programs string) (took time.Duration, err error) {
	base, err := os.MkdirTemp("", "jailer-")
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, os.Remove(base)) }()
	if err := unix.Mount("tmpfs", base, "tmpfs", 0, ""); err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, unix.Unmount(base, unix.MNT_DETACH)) }()
	command := exec.CommandContext(ctx, filepath.Join(programs, "jailer"), "--id", "floor", "--exec-file", filepath.Join(programs, "firecracker"),
		"--uid", "1599998001", "--gid", "1599998001", "--chroot-base-dir", base, "--", "--api-sock", "/api.sock")
	command.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWNET | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS,
	}
	began := time.Now()
	if err := command.Start(); err != nil {
		return 0, err
	}
	defer func() {
		command.Process.Kill()
		command.Wait()
	}()
	socket := filepath.Join(base, "firecracker", "floor", "root", "api.sock")
	const most = 10 * time.Second
	for {
		if conn, err := net.Dial("unix", socket); err == nil {
			return time.Since(began), conn.Close()
		}
		if time.Since(began) > most {
			return 0, errors.New("the jailer alone has started nothing")
		}
		time.Sleep(200 * time.Microsecond)
	}
}
