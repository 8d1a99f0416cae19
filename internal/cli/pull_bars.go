package cli

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"golang.org/x/term"

	"github.com/vmsan/vmsan/internal/image"
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

// pullBars shows how a pull or an import gets on: with bars that move on a terminal, with
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

// read is the state of a layer that an import has read.
const read registry.State = "read"

// importProgress shows an import, whose layers are known when they are begun.
func (b *pullBars) importProgress() func(image.LayerProgress) {
	if b == nil {
		return nil
	}
	return func(p image.LayerProgress) {
		for len(b.layers) < p.Layers {
			b.layers = append(b.layers, registry.Progress{Layer: len(b.layers), State: registry.Waiting})
		}
		state := registry.Begun
		if p.Done {
			state, p.Size = read, p.Read
		}
		b.layer(registry.Progress{Layer: p.Layer, State: state, Have: p.Read, Size: p.Size})
	}
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
	case !b.terminal && isHere(p.State):
		fmt.Fprintf(b.out, "layer %d of %d: %s, %s\n", p.Layer+1, len(b.layers), strings.TrimSpace(short(p.Digest)+" "+string(p.State)), bytesText(p.Size))
	}
}

func isHere(s registry.State) bool { return s == registry.Done || s == registry.Kept || s == read }

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
		switch {
		case isHere(l.State):
			here++
		case l.State == registry.Begun:
			lines = append(lines, b.bar(cmp.Or(short(l.Digest), fmt.Sprint("layer ", l.Layer+1)), l.Have, l.Size))
		}
	}
	slices.Sort(lines)
	return append(lines, b.bar(fmt.Sprintf("%d of %d layers", here, len(b.layers)), have, b.total()))
}

// bar is at most as wide as the terminal: what wraps could not be cleared. Of
// what is not known to be how large it shows what is there.
func (b *pullBars) bar(what string, have, size int64) string {
	if have > size {
		line := fmt.Sprintf("%-16s %s", what, bytesText(have))
		return line[:min(len(line), b.width-1)]
	}
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
