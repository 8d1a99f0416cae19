// Package timing runs vmsan to see how long things take. make bench and vmsan
// bench share it: both measure the program that users run, from outside.
package timing

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os/exec"
	"slices"
	"strings"
	"time"
)

// Vmsan is the program that is measured, and its state directory.
type Vmsan struct{ Binary, Dir string }

// Run runs it to its end; its output is thrown away unless out is given.
func (v Vmsan) Run(ctx context.Context, out io.Writer, args ...string) (time.Duration, error) {
	cmd := exec.CommandContext(ctx, v.Binary, append([]string{"--dir", v.Dir}, args...)...)
	var complaint bytes.Buffer
	cmd.Stdout, cmd.Stderr = out, &complaint
	return Timed(func() error {
		if err := cmd.Run(); err != nil {
			return fmt.Errorf("vmsan %s: %w: %s", strings.Join(args, " "), err, bytes.TrimSpace(complaint.Bytes()))
		}
		return nil
	})
}

// Timed is how long something takes.
func Timed(f func() error) (time.Duration, error) {
	began := time.Now()
	err := f()
	return time.Since(began), err
}

// Median is the middle of several figures, which a busy moment does not move;
// of an even number of them, what is between the two in the middle.
func Median(d []time.Duration) time.Duration {
	sorted := slices.Sorted(slices.Values(d))
	return (sorted[(len(sorted)-1)/2] + sorted[len(sorted)/2]) / 2
}

// Counter counts the bytes that are written to it.
type Counter int

func (c *Counter) Write(p []byte) (int, error) {
	*c += Counter(len(p))
	return len(p), nil
}
