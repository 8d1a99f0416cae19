// Command bench measures vmsan and, in the same run, a bare floor: the same
// QEMU with the same kernel and flags, started by a program that does nothing
// else, with an init that does nothing else. A figure on a shared machine
// means little without it. All of it is in a lab, cut off from the machine's
// network.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"

	"github.com/vmsan/vmsan/internal/testenv/lab"
)

func main() {
	var b bench
	var soak int
	flag.StringVar(&b.vmsan, "vmsan", "bin/vmsan", "the binary to measure")
	flag.StringVar(&b.state, "state", "", "a state directory that is set up")
	flag.IntVar(&b.rounds, "rounds", 7, "runs of each slow measurement; the median counts")
	flag.IntVar(&soak, "soak", 0, "instead, boot this many times in a row on a busy host")
	flag.StringVar(&b.only, "only", "", "measure this alone: cold, memory, exec, unary, stdout, forward, echo, copy, small, restore, network, firecracker, gate, image, size, pull or list")
	flag.Parse()
	var err error
	if b.world, err = lab.Enter(); err == nil {
		err = errors.Join(run(&b, soak), b.world.Close())
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(b *bench, soak int) (err error) {
	if b.vmsan, err = filepath.Abs(b.vmsan); err != nil {
		return err
	}
	if b.state, err = filepath.Abs(b.state); err != nil {
		return err
	}
	ctx := context.Background()
	if soak > 0 {
		return b.soak(ctx, soak)
	}
	if b.floor, err = newFloor(b.state); err != nil {
		return fmt.Errorf("prepare floor: %w", err)
	}
	defer b.floor.close()
	return b.all(ctx)
}
