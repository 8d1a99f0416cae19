package gate

import (
	"os"

	"github.com/vmsan/vmsan/internal/gate/logfile"
)

type consoleLog = logfile.File

func newConsoleLog(file *os.File) (*consoleLog, error) { return logfile.Open(file) }
