// Command embed runs one command in a sandbox, with nothing of vmsan's but what
// is compiled into it:
//
//	CGO_ENABLED=0 go build ./examples/embed
//	./embed uname -a
//
// The host has to be set up once, by vmsan setup.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/vmsan/vmsan"
)

func main() {
	vmsan.Main()
	if len(os.Args) < 2 {
		fmt.Fprintln(os.Stderr, "usage: embed COMMAND [ARG...]")
		os.Exit(2)
	}
	err := run(context.Background(), os.Args[1], os.Args[2:]...)
	var failed *vmsan.ExitError
	switch {
	case errors.As(err, &failed):
		os.Exit(max(failed.Code, 1))
	case err != nil:
		fmt.Fprintln(os.Stderr, "embed:", err)
		os.Exit(125)
	}
}

func run(ctx context.Context, program string, args ...string) error {
	service, err := vmsan.Open(vmsan.Options{})
	if err != nil {
		return err
	}
	vm, err := service.Create(ctx, vmsan.CreateOptions{Network: "none", Ephemeral: true})
	if err != nil {
		return err
	}
	defer service.Remove(ctx, vm.ID, true)
	cmd := vmsan.NewCmd(ctx, service, vm.ID, program, args...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	return cmd.Run()
}
