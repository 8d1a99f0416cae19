package cli

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"golang.org/x/term"

	"github.com/vmsan/vmsan/internal/registry"
	"github.com/vmsan/vmsan/internal/sandbox"
)

const (
	barWidth = 24
	// redraw is the time between two pictures of the bars.
	redraw = 100 * time.Millisecond
	// plainWidth is the width of terminals that do not say how wide they are.
	plainWidth = 80
)

// pullBars shows how a pull gets on: with bars that move on a terminal, with
// a line for each layer elsewhere.
type pullBars struct {
	out      io.Writer
	terminal bool
	width    int
	layers   []registry.Progress
	drawn    int // lines on the terminal that are ours
	last     time.Time
}

// newPullBars returns nil if nothing is to be shown.
func (a *app) newPullBars() *pullBars {
	if a.json || a.quiet {
		return nil
	}
	b := &pullBars{out: a.stderr, width: plainWidth}
	if file, ok := a.stderr.(interface{ Fd() uintptr }); ok && term.IsTerminal(int(file.Fd())) {
		b.terminal = true
		if width, _, err := term.GetSize(int(file.Fd())); err == nil && width > 0 {
			b.width = width
		}
	}
	return b
}

func (b *pullBars) watch() sandbox.PullWatch {
	if b == nil {
		return sandbox.PullWatch{}
	}
	return sandbox.PullWatch{Resolved: b.resolved, Layer: b.layer}
}

func (b *pullBars) resolved(img *registry.Image) {
	for i, l := range img.Layers {
		b.layers = append(b.layers, registry.Progress{Layer: i, Digest: l.Digest, State: registry.Waiting, Size: l.Size})
	}
	fmt.Fprintf(b.out, "%s has %d layers, %s\n", img.Reference.Name(), len(b.layers), bytesText(b.total()))
}

func (b *pullBars) total() (n int64) {
	for _, l := range b.layers {
		n += l.Size
	}
	return n
}

func (b *pullBars) layer(p registry.Progress) {
	changed := b.layers[p.Layer].State != p.State
	b.layers[p.Layer] = p
	switch {
	case b.terminal && (changed || time.Since(b.last) >= redraw):
		b.last = time.Now()
		b.clear()
		lines := b.picture()
		b.drawn = len(lines)
		fmt.Fprint(b.out, strings.Join(lines, "\n")+"\n")
	case !b.terminal && (p.State == registry.Done || p.State == registry.Kept):
		fmt.Fprintf(b.out, "layer %d of %d: %s %s, %s\n", p.Layer+1, len(b.layers), short(p.Digest), p.State, bytesText(p.Size))
	}
}

// clear takes the bars off the terminal.
func (b *pullBars) clear() {
	if b != nil && b.drawn > 0 {
		fmt.Fprintf(b.out, "\x1b[%dA\x1b[J", b.drawn)
		b.drawn = 0
	}
}

// picture has a bar for each layer that is being downloaded, and one line for
// all.
func (b *pullBars) picture() (lines []string) {
	var here int
	var have int64
	for _, l := range b.layers {
		have += l.Have
		switch l.State {
		case registry.Done, registry.Kept:
			here++
		case registry.Begun:
			lines = append(lines, b.bar(short(l.Digest), l.Have, l.Size))
		}
	}
	slices.Sort(lines)
	return append(lines, b.bar(fmt.Sprintf("%d of %d layers", here, len(b.layers)), have, b.total()))
}

// bar is at most as wide as the terminal: what wraps could not be cleared.
func (b *pullBars) bar(what string, have, size int64) string {
	done := barWidth
	if size > 0 {
		done = int(have * barWidth / size)
	}
	line := fmt.Sprintf("%-16s [%s%s] %s of %s", what, strings.Repeat("=", done), strings.Repeat(" ", barWidth-done), bytesText(have), bytesText(size))
	return line[:min(len(line), b.width-1)]
}

func short(digest string) string {
	_, hex, _ := strings.Cut(digest, ":")
	return hex[:min(len(hex), 12)]
}

// bytesText is a number of bytes as people read it.
func bytesText(n int64) string {
	const units = "kMGTPE"
	if n < 1000 {
		return fmt.Sprintf("%d B", n)
	}
	value, unit := float64(n)/1000, 0
	for value >= 999.95 && unit < len(units)-1 {
		value /= 1000
		unit++
	}
	return fmt.Sprintf("%.1f %cB", value, units[unit])
}
