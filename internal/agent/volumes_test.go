package agent

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/vmsan/vmsan/internal/link"
)

// Volumes are on the disks in the order in which they are told, and mounted
// in another: what is within a volume after that.
func TestVolumes(t *testing.T) {
	kernel := &recordingKernel{fail: map[string]error{}}
	g := newGuest(t, func(c *Config) { c.Kernel, c.SystemRoot = kernel, "/" })
	id := link.Identity{Volumes: []link.Volume{{Path: "/srv/data/deep"}, {Path: "/srv/data", ReadOnly: true}, {Path: "/m"}}}
	if err := g.agent.mountVolumes(id.Volumes); err != nil {
		t.Fatal(err)
	}
	want := []string{"mount /dev/vde /m false", "mount /dev/vdd /srv/data true", "mount /dev/vdc /srv/data/deep false"}
	if !slices.Equal(kernel.calls, want) {
		t.Errorf("got %q, want %q", kernel.calls, want)
	}
	if err := g.agent.mountVolumes([]link.Volume{{Path: "srv"}}); err == nil {
		t.Error("a relative path is taken")
	}
	kernel.fail["mount"] = errors.New("no such disk")
	if err := g.agent.mountVolumes(id.Volumes); err == nil || !strings.Contains(err.Error(), "volume at /m: no such disk") {
		t.Errorf("got %v", err)
	}
}

func TestUnescape(t *testing.T) {
	for path, want := range map[string]string{
		`/srv`: "/srv", `/a\040b\011c\134d`: "/a b\tc\\d", `/say "x"`: `/say "x"`, `/\9`: `/\9`, "": "",
	} {
		if got := unescape(path); got != want {
			t.Errorf("unescape(%q) = %q", path, got)
		}
	}
}
