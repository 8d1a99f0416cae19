// Package oci knows what images consist of, in the OCI's form and Docker's:
// wherever an image comes from, the same is read of it, bounded and chosen.
package oci

import (
	"bytes"
	"cmp"
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

// What an image may make us read, hold or store.
const (
	MaxManifest = 4 << 20 // as much as the distribution specification asks for
	MaxConfig   = 8 << 20
	MaxLayers   = 1024     // others stop at 127
	maxBlobs    = 64 << 30 // of all layers of an image: more than a file system made of them can hold
	maxNested   = 3        // an index in an index is allowed, a ladder is not
)

// The media types that are understood.
var (
	indexTypes    = []types.MediaType{types.OCIImageIndex, types.DockerManifestList}
	manifestTypes = []types.MediaType{types.OCIManifestSchema1, types.DockerManifestSchema2}
	configTypes   = []types.MediaType{types.OCIConfigJSON, types.DockerConfigJSON}

	// LayerTypes are the kinds of layers that can be read. How they are
	// compressed is told by their bytes.
	LayerTypes = []types.MediaType{
		types.OCILayer, types.OCILayerZStd, types.OCIUncompressedLayer, types.DockerLayer, types.DockerUncompressedLayer,
	}
	// ForeignLayerTypes are those of layers that registries need not have.
	ForeignLayerTypes = []types.MediaType{
		types.OCIRestrictedLayer, types.OCIUncompressedRestrictedLayer, "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd",
		types.DockerForeignLayer,
	}
)

// Accept is what to ask a registry for.
var Accept = list(manifestTypes, indexTypes)

// Document is a manifest or an index: one of them, told apart by its type.
type Document struct {
	MediaType types.MediaType `json:"mediaType"`
	Config    *v1.Descriptor  `json:"config"`
	Layers    []v1.Descriptor `json:"layers"`
	Manifests []v1.Descriptor `json:"manifests"`
}

// Parse reads a manifest or index that came as contentType.
func Parse(data []byte, contentType string) (Document, error) {
	var d Document
	if err := json.Unmarshal(data, &d); err != nil {
		return Document{}, invalid("its manifest is malformed: %v", err)
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
		return Document{}, invalid("its manifest is one and an index at the same time")
	case slices.Contains(indexTypes, d.MediaType), slices.Contains(manifestTypes, d.MediaType):
		return d, nil
	}
	return Document{}, unsupported("manifest", d.MediaType, indexTypes, manifestTypes)
}

// isIndex tells it from a manifest.
func (d Document) isIndex() bool { return slices.Contains(indexTypes, d.MediaType) }

// Manifest follows indexes to the manifest of the image for this architecture.
// get reads what a descriptor stands for.
func (d Document) Manifest(arch string, get func(v1.Descriptor) (Document, error)) (Document, error) {
	for nested := 0; d.isIndex(); nested++ {
		if nested == maxNested {
			return Document{}, invalid("it has an index in an index in an index")
		}
		fitting, err := Fitting(d.Manifests, arch)
		if err != nil {
			return Document{}, err
		}
		if err := checkDescriptor("manifest", fitting[0], MaxManifest); err != nil {
			return Document{}, err
		}
		if d, err = get(fitting[0]); err != nil {
			return Document{}, err
		}
	}
	return d, nil
}

// Check checks what a manifest promises, of layers of these types.
func (d Document) Check(layerTypes ...types.MediaType) error {
	if d.Config == nil {
		return invalid("its manifest has no configuration")
	}
	if len(d.Layers) == 0 || len(d.Layers) > MaxLayers {
		return invalid("it has %d layers, of 1 to %d", len(d.Layers), MaxLayers)
	}
	if !slices.Contains(configTypes, d.Config.MediaType) {
		return unsupported("configuration", d.Config.MediaType, configTypes)
	}
	if err := checkDescriptor("configuration", *d.Config, MaxConfig); err != nil {
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

// Fitting are those of an index's manifests that are for this architecture,
// the best first.
func Fitting(manifests []v1.Descriptor, arch string) ([]v1.Descriptor, error) {
	var fitting []v1.Descriptor
	var offered []string
	for _, m := range manifests {
		if fitness(m.Platform, arch) > 0 {
			fitting = append(fitting, m)
		} else if p := m.Platform.String(); m.Platform.OS != "unknown" && !slices.Contains(offered, p) {
			offered = append(offered, p)
		}
	}
	if len(fitting) == 0 {
		return nil, unfit(arch, offered)
	}
	slices.SortStableFunc(fitting, func(a, b v1.Descriptor) int { return fitness(b.Platform, arch) - fitness(a.Platform, arch) })
	return fitting, nil
}

// baseline are the variants that every machine of an architecture can run.
var baseline = map[string]string{"amd64": "v1", "arm64": "v8"}

// fitness tells how well a platform suits a Linux machine: not at all is 0.
// Where none is said, the image's configuration says it.
func fitness(p *v1.Platform, arch string) int {
	switch {
	case p == nil:
		return 1
	case p.OS != "linux" || p.Architecture != arch:
		return 0
	case p.Variant == "":
		return 3
	case p.Variant == baseline[arch]:
		return 2
	}
	return 0
}

func unfit(arch string, offered []string) error {
	made := "nothing"
	if len(offered) > 0 {
		made = fmt.Sprintf("%.200q", strings.Join(offered, ", "))
	}
	return api.Errorf(api.ErrUnsupported, "the image is not made for linux/%s, but for %s", arch, made)
}

// ParseConfig reads from an image's configuration the digests of its layers
// when they are not compressed, the lowest first. It checks that it fits the
// machine and the number of layers.
func ParseConfig(data []byte, layers int, arch string) (diffIDs []string, err error) {
	var c struct {
		OS           string `json:"os"`
		Architecture string `json:"architecture"`
		Variant      string `json:"variant"`
		RootFS       struct {
			DiffIDs []string `json:"diff_ids"`
		} `json:"rootfs"`
	}
	if err := json.NewDecoder(bytes.NewReader(data)).Decode(&c); err != nil {
		return nil, invalid("its configuration is malformed: %v", err)
	}
	// Old ones do not say what they are for.
	platform := v1.Platform{OS: cmp.Or(c.OS, "linux"), Architecture: cmp.Or(c.Architecture, arch), Variant: c.Variant}
	if fitness(&platform, arch) == 0 {
		return nil, unfit(arch, []string{platform.String()})
	}
	if len(c.RootFS.DiffIDs) != layers {
		return nil, invalid("its configuration tells of %d layers, its manifest of %d", len(c.RootFS.DiffIDs), layers)
	}
	for _, id := range c.RootFS.DiffIDs {
		if hex, ok := strings.CutPrefix(id, "sha256:"); !ok || !isHex(hex) {
			return nil, invalid("its configuration has the digest %.100q, and not one of sha256", id)
		}
	}
	return c.RootFS.DiffIDs, nil
}

// Digest is that of data, "sha256:<hex>".
func Digest(data []byte) string {
	sum := sha256.Sum256(data)
	return "sha256:" + hex.EncodeToString(sum[:])
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
