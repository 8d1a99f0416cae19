// Command vmsan-list runs in a guest that has nothing else. It prints the
// files below a directory, or with "who" what it was started as.
package main

import (
	"bufio"
	"fmt"
	"os"

	"github.com/vmsan/vmsan/internal/testenv/listing"
)

func main() {
	run := func() error { return list("/") }
	if len(os.Args) > 1 && os.Args[1] == "who" {
		run = who
	}
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "vmsan-list:", err)
		os.Exit(1)
	}
}

func list(root string) error {
	out := bufio.NewWriter(os.Stdout)
	err := listing.List(root, func(path, line string) error {
		_, err := fmt.Fprintf(out, "%q %s\n", path, line)
		return err
	})
	if err != nil {
		return err
	}
	return out.Flush()
}

func who() error {
	dir, err := os.Getwd()
	if err != nil {
		return err
	}
	fmt.Printf("%d:%d in %s with %q, A=%s B=%s\n", os.Getuid(), os.Getgid(), dir, os.Args[2:], os.Getenv("A"), os.Getenv("B"))
	return nil
}
