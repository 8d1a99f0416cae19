package gate

import (
	"fmt"
	"io"
	"os"
)

// A console log is cut to consoleKeep bytes, the last ones, whenever it has
// grown to consoleMax: a guest can write as much as it likes.
const (
	consoleMax  = 1 << 20
	consoleKeep = 256 << 10
)

// consoleLog is a file that forgets its beginning. It is written through one
// descriptor, because the gate could not open another.
type consoleLog struct {
	file *os.File
	size int64
}

// newConsoleLog goes on at the end of file.
func newConsoleLog(file *os.File) (*consoleLog, error) {
	size, err := file.Seek(0, io.SeekEnd)
	if err != nil {
		return nil, fmt.Errorf("open console log: %w", err)
	}
	return &consoleLog{file: file, size: size}, nil
}

func (l *consoleLog) Write(b []byte) (int, error) {
	if l.size+int64(len(b)) > consoleMax {
		if err := l.cut(); err != nil {
			return 0, fmt.Errorf("cut console log: %w", err)
		}
	}
	n, err := l.file.WriteAt(b, l.size)
	l.size += int64(n)
	return n, err
}

func (l *consoleLog) cut() error {
	kept := make([]byte, min(l.size, consoleKeep))
	n, err := l.file.ReadAt(kept, l.size-int64(len(kept)))
	if err != nil && err != io.EOF {
		return err
	}
	if err := l.file.Truncate(0); err != nil {
		return err
	}
	l.size = 0
	written, err := l.file.WriteAt(kept[:n], 0)
	l.size = int64(written)
	return err
}
