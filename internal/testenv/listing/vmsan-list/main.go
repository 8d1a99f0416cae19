// Command vmsan-list runs in a guest that has nothing else. It prints the
// files below a directory, or with "who" what it was started as; or it fails, or waits.
package main

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/signal"

	"golang.org/x/sys/unix"

	"github.com/vmsan/vmsan/internal/testenv/listing"
)

func main() {
	run := func() error { return list("/") }
	if len(os.Args) > 1 {
		run = map[string]func() error{"who": who, "fail": fail, "wait": wait}[os.Args[1]]
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

func fail() error { return errors.New("failing, as was asked for") }

// wait ends in order only if it is interrupted.
func wait() error {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals)
	fmt.Println("waiting")
	for s := range signals {
		if s == os.Interrupt {
			break
		}
		// Go's runtime sends SIGURG to itself, to preempt what runs for long.
		if s != unix.SIGURG {
			fmt.Println("not by", s)
		}
	}
	fmt.Println("interrupted")
	return nil
}

func who() error {
	dir, err := os.Getwd()
	if err != nil {
		return err
	}
	fmt.Printf("%d:%d in %s with %q, A=%s B=%s\n", os.Getuid(), os.Getgid(), dir, os.Args[2:], os.Getenv("A"), os.Getenv("B"))
	return nil
}
