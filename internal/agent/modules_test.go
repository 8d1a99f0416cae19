package agent

import (
	"slices"
	"testing"
)

func TestDependencies(t *testing.T) {
	for image, want := range map[string][]string{
		"":                              nil,
		"\x7fELF license=GPL\x00name=x": nil,
		"license=GPL\x00depends=\x00retpoline=Y\x00":              nil,
		"license=GPL\x00depends=virtio\x00retpoline=Y\x00":        {"virtio"},
		"x\x00depends=virtio_ring,virtio-rng,,failover\x00name=y": {"virtio_ring", "virtio_rng", "failover"},
		"x\x00depends=cut,off":                                    {"cut", "off"},
	} {
		if got := dependencies([]byte(image)); !slices.Equal(got, want) {
			t.Errorf("%q: got %q, want %q", image, got, want)
		}
	}
}
