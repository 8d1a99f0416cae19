// Command vmsan-attack runs in a guest, as root. It makes one attack after the
// other, each for so long, and prints how often it did what; as an init it
// takes the agent's place, and lies to the host.
package main

import (
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/vmsan/vmsan/internal/testenv/attack"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "vmsan-attack:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if os.Getpid() == 1 {
		return attack.Lie()
	}
	if len(args) < 3 {
		return fmt.Errorf("usage: vmsan-attack TIME TARGETS NAME...; names: %s", strings.Join(attack.Names(), ", "))
	}
	limit, err := time.ParseDuration(args[0])
	if err != nil {
		return err
	}
	targets := strings.Fields(args[1])
	for _, name := range args[2:] {
		n, err := attack.Run(limit, name, targets)
		if err != nil {
			fmt.Printf("%s failed: %v\n", name, err)
			continue
		}
		fmt.Printf("%s %d\n", name, n)
	}
	return nil
}
