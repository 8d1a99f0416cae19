package oci

import (
	"fmt"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

var zeros = strings.Repeat("0", 64)

// What a manifest promises is within bounds, or it is refused.
func FuzzManifest(f *testing.F) {
	layer := fmt.Sprintf(`{"mediaType": %q, "size": 5, "digest": "sha256:%s"}`, LayerTypes[0], zeros)
	config := fmt.Sprintf(`{"mediaType": %q, "size": 5, "digest": "sha256:%s"}`, configTypes[0], zeros)
	f.Add([]byte(fmt.Sprintf(`{"mediaType": %q, "config": %s, "layers": [%s, %s]}`, manifestTypes[0], config, layer, layer)), "")
	f.Add([]byte(fmt.Sprintf(`{"manifests": [{"platform": {"os": "linux", "architecture": "amd64"}, "size": 7, "digest": "sha256:%s"}]}`, zeros)), string(indexTypes[0]))
	f.Add([]byte(`{"manifests": [{}]}`), "text/html; x=y")
	f.Fuzz(func(t *testing.T, data []byte, contentType string) {
		d, err := Parse(data, contentType)
		if err != nil {
			return
		}
		if d.isIndex() {
			d.Manifest("amd64", func(chosen v1.Descriptor) (Document, error) {
				if chosen.Size > MaxManifest || !isHex(chosen.Digest.Hex) {
					t.Errorf("chose %+v", chosen)
				}
				return d, nil
			})
			return
		}
		if d.Check(LayerTypes...) != nil {
			return
		}
		var total int64
		for _, l := range d.Layers {
			if total += l.Size; l.Size < 0 || !isHex(l.Digest.Hex) {
				t.Errorf("layer %+v", l)
			}
		}
		if len(d.Layers) > MaxLayers || total > maxBlobs || d.Config.Size > MaxConfig {
			t.Errorf("%d layers of %d bytes, configuration of %d", len(d.Layers), total, d.Config.Size)
		}
	})
}

func FuzzConfig(f *testing.F) {
	f.Add([]byte(`{"os": "linux", "architecture": "amd64", "rootfs": {"diff_ids": ["sha256:`+zeros+`"]}}`), 1)
	f.Add([]byte(`{"rootfs": null}`), 0)
	f.Fuzz(func(t *testing.T, data []byte, layers int) {
		if ids, err := ParseConfig(data, layers, "amd64"); err == nil && len(ids) != layers {
			t.Errorf("%d layers pass for %d", len(ids), layers)
		}
	})
}
