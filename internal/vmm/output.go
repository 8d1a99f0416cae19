package vmm

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"strings"
	"time"
	"unicode"
)

// Output takes what a VMM prints to a log and keeps the beginning of it,
// where a VMM that cannot go on says why.
type Output struct {
	read, write *os.File
	kept        bytes.Buffer
	done        chan struct{}
}

// maxKept bounds what is kept of an output, and maxComplaint what is told of
// it, in bytes.
const (
	maxKept      = 8 << 10
	maxComplaint = 300
)

// NewOutput returns an output that is written to log, or to nowhere if log is
// nil. Log stays the caller's.
func NewOutput(log *os.File) (*Output, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("make pipe for output: %w", err)
	}
	o := &Output{read: r, write: w, done: make(chan struct{})}
	go o.copy(log)
	return o, nil
}

// File is the end for the VMM, which has its own descriptor of it.
func (o *Output) File() *os.File { return o.write }

func (o *Output) copy(log *os.File) {
	defer close(o.done)
	to := io.Discard
	if log != nil {
		to = log
	}
	// A log that cannot be written does not keep the VMM from talking.
	io.Copy(to, io.TeeReader(io.LimitReader(o.read, maxKept), &o.kept))
	io.Copy(to, o.read)
	io.Copy(io.Discard, o.read)
}

// lastWords is how long a VMM that has ended may take to be read out. Only
// something that it left running can keep its output open.
const lastWords = time.Second

// Close waits for the end of the output of a VMM that has ended. Closing
// twice is fine.
func (o *Output) Close() {
	o.write.Close()
	o.read.SetReadDeadline(time.Now().Add(lastWords))
	<-o.done
	o.read.Close()
}

// Complaint is the first line that is no warning, without the name of the
// program that it begins with, made safe to print; "" if there is none. Only
// after Close.
func (o *Output) Complaint(program string) string {
	for line := range strings.Lines(o.kept.String()) {
		line = strings.TrimPrefix(strings.TrimSpace(line), program+": ")
		line = strings.TrimPrefix(line, "error: ")
		if line == "" || strings.HasPrefix(line, "warning: ") {
			continue
		}
		return Printable(line[:min(len(line), maxComplaint)])
	}
	return ""
}

// Printable replaces what could move a terminal's cursor.
func Printable(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return '?'
	}, s)
}
