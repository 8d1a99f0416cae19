package monitor

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"regexp"
	"strings"

	"github.com/vmsan/vmsan/internal/vmm"
)

// How much of a log goes into an error.
const (
	tailBytes = 8 << 10
	tailLines = 20
)

// tail returns the last lines of a log, made safe to print.
// What cannot be read is left out: the error that it would go with matters
// more.
func tail(path string) []string {
	file, err := os.Open(path)
	if err != nil {
		return nil
	}
	defer file.Close()
	if _, err := file.Seek(-tailBytes, io.SeekEnd); err != nil {
		file.Seek(0, io.SeekStart)
	}
	text, err := io.ReadAll(io.LimitReader(file, tailBytes))
	if err != nil {
		return nil
	}
	var lines []string
	for line := range strings.Lines(string(text)) {
		if line = vmm.Printable(strings.TrimSpace(line)); line != "" {
			lines = append(lines, line)
		}
	}
	return lines[max(len(lines)-tailLines, 0):]
}

// hostnameLabel is what a host name may be (RFC 1123, section 2.1).
var hostnameLabel = regexp.MustCompile(`^[a-zA-Z0-9]([a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?$`)

// machineID is a sandbox's machine id (machine-id(5)): the same at each
// start, and no other sandbox's.
func machineID(id string) string {
	sum := sha256.Sum256([]byte("vmsan machine id " + id))
	return hex.EncodeToString(sum[:16])
}

// newUUID makes a random one (RFC 9562, section 5.4).
func newUUID() string {
	var raw [16]byte
	rand.Read(raw[:])
	raw[6], raw[8] = raw[6]&0x0f|0x40, raw[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", raw[:4], raw[4:6], raw[6:8], raw[8:10], raw[10:])
}

// maxLog is how much of what the monitor logs is kept, and of what VMM and
// gate print, in bytes each.
const maxLog = 1 << 20

// boundedWriter writes as much as is left.
type boundedWriter struct {
	w    io.Writer
	left int
}

func (b *boundedWriter) Write(line []byte) (int, error) {
	if len(line) > b.left {
		return len(line), nil
	}
	b.left -= len(line)
	return b.w.Write(line)
}

// boundedLog returns a pipe to the end of the log at path, which takes
// anything and writes no more than maxLog.
func boundedLog(path string) (*os.File, error) {
	log, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open log: %w", err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		log.Close()
		return nil, fmt.Errorf("make pipe for log: %w", err)
	}
	go func() {
		defer r.Close()
		defer log.Close()
		io.CopyN(log, r, maxLog)
		io.Copy(io.Discard, r)
	}()
	return w, nil
}
