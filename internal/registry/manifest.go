package registry

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"mime"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/vmsan/vmsan/api"
)

// What a registry may make us read, hold or store.
const (
	maxManifest = 4 << 20 // as much as the distribution specification asks for
	maxConfigs  = 8 << 20
	maxLayers   = 512
	maxBlobs    = 64 << 30 // of all layers of an image: more than a file system made of them can hold
	maxNested   = 3        // an index in an index is allowed, a ladder is not
)

// The media types that are understood.
var (
	indexTypes    = []types.MediaType{types.OCIImageIndex, types.DockerManifestList}
	manifestTypes = []types.MediaType{types.OCIManifestSchema1, types.DockerManifestSchema2}
	configTypes   = []types.MediaType{types.OCIConfigJSON, types.DockerConfigJSON}
	layerTypes    = []types.MediaType{
		types.OCILayer, types.OCILayerZStd, types.OCIUncompressedLayer, types.DockerLayer, types.DockerUncompressedLayer,
	}
)

// document is a manifest or an index: one of them, told apart by what it has.
type document struct {
	MediaType types.MediaType `json:"mediaType"`
	Config    *v1.Descriptor  `json:"config"`
	Layers    []v1.Descriptor `json:"layers"`
	Manifests []v1.Descriptor `json:"manifests"`
}

// parseDocument reads a manifest or index that came as contentType.
func parseDocument(data []byte, contentType string) (document, error) {
	var d document
	if err := json.Unmarshal(data, &d); err != nil {
		return document{}, invalid("its manifest is malformed: %v", err)
	}
	if d.MediaType == "" {
		// The field is optional in OCI; servers of plain files send types of
		// their own.
		if sent, _, err := mime.ParseMediaType(contentType); err == nil {
			d.MediaType = types.MediaType(sent)
		}
	}
	switch {
	case d.Manifests != nil && (d.Config != nil || d.Layers != nil):
		// What it is would depend on who reads it.
		return document{}, invalid("its manifest is one and an index at the same time")
	case slices.Contains(indexTypes, d.MediaType), slices.Contains(manifestTypes, d.MediaType):
		return d, nil
	}
	return document{}, unsupported("manifest", d.MediaType, indexTypes, manifestTypes)
}

func (d document) isIndex() bool { return slices.Contains(indexTypes, d.MediaType) }

// check checks what a manifest promises.
func (d document) check() error {
	if d.Config == nil {
		return invalid("its manifest has no configuration")
	}
	if len(d.Layers) == 0 || len(d.Layers) > maxLayers {
		return invalid("it has %d layers, of 1 to %d", len(d.Layers), maxLayers)
	}
	if !slices.Contains(configTypes, d.Config.MediaType) {
		return unsupported("configuration", d.Config.MediaType, configTypes)
	}
	if err := checkDescriptor("configuration", *d.Config, maxConfigs); err != nil {
		return err
	}
	left := int64(maxBlobs)
	for i, l := range d.Layers {
		what := fmt.Sprintf("layer %d", i+1)
		if !slices.Contains(layerTypes, l.MediaType) {
			return unsupported(what, l.MediaType, layerTypes)
		}
		if err := checkDescriptor(what, l, left); err != nil {
			return err
		}
		left -= l.Size
	}
	return nil
}

func checkDescriptor(what string, d v1.Descriptor, most int64) error {
	if d.Digest.Algorithm != "sha256" || !isHex(d.Digest.Hex) {
		return invalid("its %s has the digest %.100q, and not one of sha256", what, d.Digest.String())
	}
	if d.Size < 0 || d.Size > most {
		return invalid("its %s has %d bytes; %d are the most", what, d.Size, most)
	}
	return nil
}

func isHex(s string) bool {
	b, err := hex.DecodeString(s)
	return err == nil && len(b) == sha256.Size && s == strings.ToLower(s)
}

// choose picks what runs on this architecture from an index.
func (d document) choose(arch string) (v1.Descriptor, error) {
	best, found := 0, -1
	var offered []string
	for i, m := range d.Manifests {
		if m.Platform == nil {
			continue
		}
		if !slices.Contains(offered, m.Platform.String()) && m.Platform.OS != "unknown" {
			offered = append(offered, m.Platform.String())
		}
		if fit := fitness(*m.Platform, arch); fit > best {
			best, found = fit, i
		}
	}
	if found < 0 {
		return v1.Descriptor{}, unfit(arch, offered)
	}
	chosen := d.Manifests[found]
	return chosen, checkDescriptor("manifest", chosen, maxManifest)
}

// baseline are the variants that every machine of an architecture can run.
var baseline = map[string]string{"amd64": "v1", "arm64": "v8"}

// fitness tells how well a platform suits a Linux machine: not at all is 0.
func fitness(p v1.Platform, arch string) int {
	switch {
	case p.OS != "linux" || p.Architecture != arch:
		return 0
	case p.Variant == "":
		return 2
	case p.Variant == baseline[arch]:
		return 1
	}
	return 0
}

func unfit(arch string, offered []string) error {
	if len(offered) == 0 {
		offered = []string{"nothing"}
	}
	return api.Errorf(api.ErrUnsupported, "the image is not made for linux/%s, but for %s", arch, printable(strings.Join(offered, ", ")))
}

// configFile is the part of an image's configuration that matters here.
type configFile struct {
	OS           string `json:"os"`
	Architecture string `json:"architecture"`
	Variant      string `json:"variant"`
	RootFS       struct {
		DiffIDs []string `json:"diff_ids"`
	} `json:"rootfs"`
}

// parseConfigFile reads an image's configuration and checks that it fits the
// machine and the number of layers.
func parseConfigFile(data []byte, layers int, arch string) (configFile, error) {
	var c configFile
	if err := json.NewDecoder(bytes.NewReader(data)).Decode(&c); err != nil {
		return c, invalid("its configuration is malformed: %v", err)
	}
	platform := v1.Platform{OS: c.OS, Architecture: c.Architecture, Variant: c.Variant}
	if fitness(platform, arch) == 0 {
		return c, unfit(arch, []string{platform.String()})
	}
	if len(c.RootFS.DiffIDs) != layers {
		return c, invalid("its configuration tells of %d layers, its manifest of %d", len(c.RootFS.DiffIDs), layers)
	}
	for _, id := range c.RootFS.DiffIDs {
		if hex, ok := strings.CutPrefix(id, "sha256:"); !ok || !isHex(hex) {
			return c, invalid("its configuration has the digest %.100q, and not one of sha256", id)
		}
	}
	return c, nil
}

func invalid(format string, args ...any) error {
	return api.Errorf(api.ErrImageInvalid, "the image cannot be used: "+format, args...)
}

func unsupported(what string, got types.MediaType, supported ...[]types.MediaType) error {
	return api.Errorf(api.ErrImageInvalid, "the image cannot be used: its %s has the media type %.100q", what, string(got)).
		WithHint("supported are %s", list(supported...))
}

// list is how HTTP and people write it.
func list(groups ...[]types.MediaType) string {
	var all []string
	for _, t := range slices.Concat(groups...) {
		all = append(all, string(t))
	}
	return strings.Join(all, ", ")
}
