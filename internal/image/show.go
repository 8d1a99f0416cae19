package image

import (
	"maps"
	"slices"

	"github.com/vmsan/vmsan/api"
)

// Show turns an image into what the user sees. digests has those of all names.
func (img Image) Show(digests map[string]string) api.Image {
	shown := api.Image{
		Digest: img.Digest, Names: []string{}, SizeBytes: img.Size, CreatedAt: img.Created, Source: img.Source,
		Config: api.ImageConfig(img.Config),
	}
	for _, name := range slices.Sorted(maps.Keys(digests)) {
		if digests[name] == img.Digest {
			shown.Names = append(shown.Names, name)
		}
	}
	return shown
}
