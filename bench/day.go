package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/creack/pty"

	"github.com/vmsan/vmsan/api"
	"github.com/vmsan/vmsan/bench/floor/request"
	"github.com/vmsan/vmsan/internal/timing"
)

// server sends request.DumpBytes to who sends it 'd', and takes all that others
// send before it answers.
const server = `
import socket
zeros = bytes(1 << 20)
s = socket.create_server(("127.0.0.1", 9000))
print("up", flush=True)
while True:
    c, _ = s.accept()
    if c.recv(1) == b"d":
        for _ in range(%d // len(zeros)):
            c.sendall(zeros)
    else:
        buffer = bytearray(1 << 20)
        while c.recv_into(buffer):
            pass
        c.sendall(b"u")
    c.close()
`

// forward is bulk data through port-forward, each way.
func (b *bench) forward(ctx context.Context, vm string, m *machine) error {
	serving, err := b.start(ctx, "exec", "--no-stdin", vm, "python3", "-c", fmt.Sprintf(server, request.DumpBytes))
	if err != nil {
		return err
	}
	defer serving.end()
	if _, err := serving.out.ReadString('\n'); err != nil {
		return fmt.Errorf("start server in the guest: %w", err)
	}
	forwarding, err := b.start(ctx, "--json", "port-forward", vm, "0:9000")
	if err != nil {
		return err
	}
	defer forwarding.end()
	var open []api.Forwarding
	if err := json.NewDecoder(forwarding.out).Decode(&open); err != nil {
		return fmt.Errorf("forward port: %w", err)
	}
	var down, up, rawDown, rawUp []time.Duration
	for range b.rounds {
		for _, part := range []struct {
			to      *[]time.Duration
			measure func() (time.Duration, error)
		}{
			{&rawDown, func() (time.Duration, error) { return m.produce(request.Dump) }},
			{&rawUp, m.consume},
			{&down, func() (time.Duration, error) { return receive(open[0].Local) }},
			{&up, func() (time.Duration, error) { return send(open[0].Local) }},
		} {
			took, err := part.measure()
			if err != nil {
				return err
			}
			*part.to = append(*part.to, took)
		}
	}
	b.addShare("port-forward of 200 MB from the guest", request.DumpBytes, timing.Median(down), timing.Median(rawDown), ">= 50 %")
	b.addShare("port-forward of 200 MB to the guest", request.DumpBytes, timing.Median(up), timing.Median(rawUp), ">= 50 %")
	return nil
}

// addShare adds a row of rates, and what part ours is of the floor's.
func (b *bench) addShare(what string, bytes float64, ours, floor time.Duration, target string) {
	b.add(what, rate(bytes, ours), rate(request.DumpBytes, floor),
		fmt.Sprintf("%.0f %%", 100*bytes/ours.Seconds()/(request.DumpBytes/floor.Seconds())), target)
}

func receive(address string) (time.Duration, error) {
	conn, err := net.Dial("tcp", address)
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	return timing.Timed(func() error {
		if _, err := io.WriteString(conn, "d"); err != nil {
			return err
		}
		var count timing.Counter
		if _, err := io.Copy(&count, conn); err != nil {
			return err
		}
		if count != request.DumpBytes {
			return fmt.Errorf("port-forward carried %d bytes, want %d", count, request.DumpBytes)
		}
		return nil
	})
}

func send(address string) (time.Duration, error) {
	conn, err := net.Dial("tcp", address)
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	return timing.Timed(func() error {
		zeros := make([]byte, 256<<10)
		for sent := 0; sent < request.DumpBytes; sent += len(zeros) {
			if _, err := conn.Write(zeros); err != nil {
				return err
			}
		}
		if err := conn.(*net.TCPConn).CloseWrite(); err != nil {
			return err
		}
		_, err := io.ReadFull(conn, make([]byte, 1))
		return err
	})
}

// program is a vmsan that runs beside a measurement.
type program struct {
	cmd *exec.Cmd
	out *bufio.Reader
}

func (b *bench) start(ctx context.Context, args ...string) (*program, error) {
	cmd := exec.CommandContext(ctx, b.vmsan, append([]string{"--dir", b.state}, args...)...)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	return &program{cmd, bufio.NewReader(out)}, err
}

func (p *program) end() {
	p.cmd.Process.Kill()
	p.cmd.Wait()
}

// echo is a key that is typed in connect, until it shows.
func (b *bench) echo(ctx context.Context, vm string, m *machine) error {
	cmd := exec.CommandContext(ctx, b.vmsan, "--dir", b.state, "connect", vm, "sh", "-c", "echo READY; exec cat")
	terminal, err := pty.Start(cmd)
	if err != nil {
		return err
	}
	defer func() {
		cmd.Process.Kill()
		cmd.Wait()
		terminal.Close()
	}()
	press := func(key byte) error {
		if _, err := terminal.Write([]byte{key}); err != nil {
			return err
		}
		return awaitByte(terminal, key)
	}
	// Until then our own terminal would show what is typed.
	if err := awaitByte(terminal, 'Y'); err != nil {
		return err
	}
	var ours, theirs []time.Duration
	for i := range 3 * quick {
		took, err := timing.Timed(func() error { return press('a' + byte(i%20)) })
		if err != nil {
			return err
		}
		floor, err := timing.Timed(func() error { return m.ask(request.Echo) })
		if err != nil {
			return err
		}
		ours, theirs = append(ours, took), append(theirs, floor)
	}
	v, f := timing.Median(ours), timing.Median(theirs)
	b.add("key typed in connect, until it shows", ms(v), ms(f), ratio(v, f), "<= 2 x")
	return nil
}

const (
	copyBytes = 1 << 30
	// smallFiles of smallBytes are copied; only each hundredth of them by a
	// command of its own, which takes long.
	smallFiles, smallBytes = 10_000, 1 << 10
	smallPart              = 100
)

// copies copies one large file each way.
func (b *bench) copies(ctx context.Context, vm string, m *machine) error {
	dir, err := os.MkdirTemp("", "vmsan-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	large := filepath.Join(dir, "large")
	if err := writeNoise(large, copyBytes); err != nil {
		return err
	}
	// A copy takes long, and the host is not as fast at its end as it was at its
	// beginning: the floor is in between.
	var rawDown, rawUp []time.Duration
	raw := func() error {
		down, err := m.produce(request.Dump)
		if err != nil {
			return err
		}
		up, err := m.consume()
		rawDown, rawUp = append(rawDown, down), append(rawUp, up)
		return err
	}
	if err := raw(); err != nil {
		return err
	}
	up, err := b.command(ctx, b.state, nil, "cp", large, vm+":/root/large")
	if err != nil {
		return err
	}
	if err := raw(); err != nil {
		return err
	}
	down, err := b.command(ctx, b.state, nil, "cp", vm+":/root/large", large+"-2")
	if err != nil {
		return err
	}
	if err := raw(); err != nil {
		return err
	}
	if out, err := exec.CommandContext(ctx, "cmp", large, large+"-2").CombinedOutput(); err != nil {
		return fmt.Errorf("what came back: %w: %s", err, out)
	}
	b.addShare("cp of 1 GiB to the guest", copyBytes, up, timing.Median(rawUp), ">= 60 %")
	b.addShare("cp of 1 GiB from the guest", copyBytes, down, timing.Median(rawDown), ">= 60 %")
	_, err = b.command(ctx, b.state, nil, "exec", vm, "rm", "/root/large")
	return err
}

// writeNoise makes a file that has no holes and no repetition.
func writeNoise(path string, size int64) error {
	file, err := os.Create(path)
	if err != nil {
		return err
	}
	_, err = io.CopyN(file, rand.NewChaCha8([32]byte{}), size)
	return errors.Join(err, file.Close())
}

// small copies many small files, beside a cat for each and beside tar.
func (b *bench) small(ctx context.Context, vm string, _ *machine) error {
	dir, err := os.MkdirTemp("", "vmsan-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	tree := filepath.Join(dir, "tree")
	for i := range smallFiles {
		path := filepath.Join(tree, fmt.Sprint(i/100), fmt.Sprint(i))
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := writeNoise(path, smallBytes); err != nil {
			return err
		}
	}
	var up, down, tarUp, tarDown []time.Duration
	for range max(b.rounds/2, 1) {
		for _, part := range []struct {
			to      *[]time.Duration
			measure func() (time.Duration, error)
		}{
			{&up, func() (time.Duration, error) { return b.command(ctx, b.state, nil, "cp", tree, vm+":/root/cp") }},
			{&tarUp, func() (time.Duration, error) {
				return b.shell(ctx, `tar -C "$2" -c tree | "$1" exec "$3" sh -c 'mkdir /root/tar && tar -C /root/tar -x'`, dir, vm)
			}},
			{&down, func() (time.Duration, error) { return b.command(ctx, b.state, nil, "cp", vm+":/root/cp", dir+"/cp") }},
			{&tarDown, func() (time.Duration, error) {
				return b.shell(ctx, `mkdir "$2/tar" && "$1" exec --no-stdin "$3" tar -C /root/tar -c tree | tar -C "$2/tar" -x`, dir, vm)
			}},
		} {
			took, err := part.measure()
			if err != nil {
				return err
			}
			*part.to = append(*part.to, took)
		}
		if _, err := b.command(ctx, b.state, nil, "exec", vm, "rm", "-r", "/root/cp", "/root/tar"); err != nil {
			return err
		}
		if err := errors.Join(os.RemoveAll(dir+"/cp"), os.RemoveAll(dir+"/tar")); err != nil {
			return err
		}
	}
	single, err := timing.Timed(func() error { return b.each(ctx, vm, tree) })
	if err != nil {
		return err
	}
	single *= smallFiles / smallPart
	for _, c := range []struct {
		what     string
		ours     time.Duration
		theirTar time.Duration
	}{{"to", timing.Median(up), timing.Median(tarUp)}, {"from", timing.Median(down), timing.Median(tarDown)}} {
		what := fmt.Sprintf("cp of 10,000 files of 1 KiB %s the guest; floor: ", c.what)
		b.add(what+"an exec of cat for each", ms(c.ours), ms(single), fmt.Sprintf("%.0f x faster", single.Seconds()/c.ours.Seconds()), ">= 5 x faster")
		b.add(what+"tar through exec", ms(c.ours), ms(c.theirTar), ratio(c.ours, c.theirTar), "<= 2 x")
	}
	return nil
}

// shell runs a script, whose $1 is vmsan.
func (b *bench) shell(ctx context.Context, script string, args ...string) (time.Duration, error) {
	cmd := exec.CommandContext(ctx, "sh", append([]string{"-c", script, "sh", b.vmsan}, args...)...)
	cmd.Env = append(os.Environ(), "VMSAN_DIR="+b.state)
	return timing.Timed(func() error {
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w: %s", script, err, out)
		}
		return nil
	})
}

// each writes some of the files by a command of its own.
func (b *bench) each(ctx context.Context, vm, tree string) error {
	for i := range smallPart {
		data, err := os.ReadFile(filepath.Join(tree, "0", fmt.Sprint(i)))
		if err != nil {
			return err
		}
		cmd := exec.CommandContext(ctx, b.vmsan, "--dir", b.state, "exec", vm, "sh", "-c", "cat > /root/single")
		cmd.Stdin = bytes.NewReader(data)
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("write a file by exec: %w: %s", err, strings.TrimSpace(string(out)))
		}
	}
	return nil
}
