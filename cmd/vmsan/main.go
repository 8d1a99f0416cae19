// Command vmsan runs code nobody has to trust in microVMs.
package main

import (
	"os"

	"github.com/vmsan/vmsan/internal/cli"
)

func main() { os.Exit(cli.Main(os.Args)) }
