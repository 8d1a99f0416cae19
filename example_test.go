package vmsan_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log"
	"os"
	"strings"
	"time"

	"github.com/vmsan/vmsan"
	"github.com/vmsan/vmsan/api"
)

// A sandbox for one piece of work, which is gone when this program is.
func Example() {
	ctx := context.Background()
	service, err := vmsan.Open(vmsan.Options{})
	if err != nil {
		log.Fatal(err)
	}
	vm, err := service.Create(ctx, vmsan.CreateOptions{Network: "none", Ephemeral: true})
	if err != nil {
		log.Fatal(err)
	}
	defer service.Remove(ctx, vm.ID, true)

	out, err := vmsan.NewCmd(ctx, service, vm.ID, "python3", "-c", "print(6 * 7)").Output()
	fmt.Printf("%s%v\n", out, err)
	// Output:
	// 42
	// <nil>
}

// Commands are like those of os/exec.
func ExampleCmd() {
	ctx := context.Background()
	service, err := vmsan.Open(vmsan.Options{})
	if err != nil {
		log.Fatal(err)
	}
	vm, err := service.Create(ctx, vmsan.CreateOptions{Network: "none", Ephemeral: true})
	if err != nil {
		log.Fatal(err)
	}
	defer service.Remove(ctx, vm.ID, true)

	cmd := vmsan.NewCmd(ctx, service, vm.ID, "sh", "-c", "tr a-z A-Z; exit 3")
	cmd.Stdin = strings.NewReader("quietly\n")
	cmd.Stdout = os.Stdout
	cmd.Timeout = time.Minute
	if err := cmd.Start(); err != nil {
		log.Fatal(err)
	}
	err = cmd.Wait()
	var failed *vmsan.ExitError
	fmt.Println(errors.As(err, &failed), err)

	err = vmsan.NewCmd(ctx, service, vm.ID, "no-such-program").Run()
	fmt.Println(api.HasCode(err, api.ErrExecNotFound))
	// Output:
	// QUIETLY
	// true exit status 3
	// true
}

// The files of a sandbox are an fs.FS that can be written to.
func ExampleFiles() {
	ctx := context.Background()
	service, err := vmsan.Open(vmsan.Options{})
	if err != nil {
		log.Fatal(err)
	}
	vm, err := service.Create(ctx, vmsan.CreateOptions{Network: "none", Ephemeral: true})
	if err != nil {
		log.Fatal(err)
	}
	defer service.Remove(ctx, vm.ID, true)

	files, err := service.Files(ctx, vm.ID)
	if err != nil {
		log.Fatal(err)
	}
	defer files.Close()
	if err := files.MkdirAll("srv/app"); err != nil {
		log.Fatal(err)
	}
	if err := files.WriteFile("srv/app/hello", []byte("#!/bin/sh\necho hello\n"), 0o755); err != nil {
		log.Fatal(err)
	}
	fs.WalkDir(files, "srv", func(name string, entry fs.DirEntry, err error) error {
		fmt.Println(name, err)
		return err
	})
	out, err := vmsan.NewCmd(ctx, service, vm.ID, "/srv/app/hello").Output()
	fmt.Printf("%s%v\n", out, err)
	_, err = files.Stat("srv/nothing")
	fmt.Println(errors.Is(err, fs.ErrNotExist))
	// Output:
	// srv <nil>
	// srv/app <nil>
	// srv/app/hello <nil>
	// hello
	// <nil>
	// true
}

// Hooks are told what happens, and can keep it from happening.
func ExampleOn() {
	ctx := context.Background()
	named := vmsan.On(api.HookBeforeCreate, "everything-has-a-name", func(_ context.Context, e api.HookEvent) error {
		if e.State.Name == "" {
			return errors.New("give it a name")
		}
		return nil
	})
	service, err := vmsan.Open(vmsan.Options{Hooks: []vmsan.Hook{named}})
	if err != nil {
		log.Fatal(err)
	}
	_, err = service.Create(ctx, vmsan.CreateOptions{Network: "none"})
	fmt.Println(err)
	vm, err := service.Create(ctx, vmsan.CreateOptions{Name: "mine", Network: "none", Ephemeral: true})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(vm.Name, vm.Status, service.Remove(ctx, vm.ID, true))
	// Output:
	// create sandbox: hook everything-has-a-name of vm:beforeCreate: give it a name
	// mine running <nil>
}
