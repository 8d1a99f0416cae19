// Command vmsan-agent is the program inside every sandbox: its init and the
// server of the guest API.
package main

import (
	"os"

	"github.com/vmsan/vmsan/internal/agent"
)

func main() { os.Exit(agent.Main(os.Args)) }
