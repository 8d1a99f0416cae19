package image

import (
	"runtime"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	layouts "github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"

	"github.com/vmsan/vmsan/api"
	"github.com/vmsan/vmsan/internal/testenv/hub"
)

// entry is an image in a layout, whose only file has the name that it says.
type entry struct {
	file, ref string
	platform  *v1.Platform
}

func (e entry) add(t *testing.T) mutate.IndexAddendum {
	t.Helper()
	d := v1.Descriptor{Platform: e.platform}
	if e.ref != "" {
		d.Annotations = map[string]string{"org.opencontainers.image.ref.name": e.ref}
	}
	return mutate.IndexAddendum{
		Add:        hub.Image(t, runtime.GOARCH, v1.Config{}, []hub.File{{Path: e.file, Content: "x"}}),
		Descriptor: d,
	}
}

func here(variant string) *v1.Platform {
	return &v1.Platform{OS: "linux", Architecture: runtime.GOARCH, Variant: variant}
}

// TestImportChooses takes what a registry would be asked for: of one image for
// several machines the one that suits this one best, wherever its index is.
// What may be different images is not chosen from.
func TestImportChooses(t *testing.T) {
	baseline := map[string]string{"amd64": "v1", "arm64": "v8"}[runtime.GOARCH]
	vax := &v1.Platform{OS: "linux", Architecture: "vax"}
	for name, test := range map[string]struct {
		entries []entry
		ref     string
		want    string // the file
		code    api.Code
		says    string
	}{
		"another variant behind":       {entries: []entry{{"plain", "", here("")}, {"new", "", here("v9")}}, want: "plain"},
		"another variant in front":     {entries: []entry{{"new", "", here("v9")}, {"plain", "", here("")}}, want: "plain"},
		"the variant that all can run": {entries: []entry{{"new", "", here("v9")}, {"old", "", here(baseline)}}, want: "old"},
		"the better variant":           {entries: []entry{{"old", "", here(baseline)}, {"plain", "", here("")}}, want: "plain"},
		"another machine":              {entries: []entry{{"vax", "", vax}, {"plain", "", here("")}}, want: "plain"},
		"no platform":                  {entries: []entry{{"any", "", nil}}, want: "any"},
		"by name":                      {entries: []entry{{"a", "a", here("")}, {"b", "b", here("")}}, ref: "b", want: "b"},
		"only another variant": {
			entries: []entry{{"new", "", here("v9")}, {"vax", "", vax}}, code: api.ErrUnsupported,
			says: "the image is not made for linux/" + runtime.GOARCH + `, but for "linux/` + runtime.GOARCH + `/v9, linux/vax"`,
		},
	} {
		t.Run(name, func(t *testing.T) {
			flat := v1.ImageIndex(empty.Index)
			for _, e := range test.entries {
				flat = mutate.AppendManifests(flat, e.add(t))
			}
			checkLayout(t, flat, test.ref, test.want, test.code, test.says)
			if test.ref == "" {
				checkLayout(t, mutate.AppendManifests(empty.Index, mutate.IndexAddendum{Add: flat}), "", test.want, test.code, test.says)
			}
		})
	}
	for name, entries := range map[string][]entry{
		"two names":               {{"a", "a", here("")}, {"b", "b", here("")}},
		"two names and variants":  {{"a", "a", here("")}, {"b", "b", here(baseline)}},
		"two of one platform":     {{"a", "", here("")}, {"b", "", here("")}},
		"two without a platform":  {{"a", "", nil}, {"b", "", nil}},
		"one without a platform":  {{"a", "", nil}, {"b", "", here("")}},
		"two that are both worse": {{"a", "", here(baseline)}, {"b", "", here(baseline)}},
	} {
		t.Run(name, func(t *testing.T) {
			index := v1.ImageIndex(empty.Index)
			for _, e := range entries {
				index = mutate.AppendManifests(index, e.add(t))
			}
			checkLayout(t, index, "", "", api.ErrImageInvalid, "there are 2 images")
		})
	}
}

// TestImportNested allows no more indexes in each other than a registry may
// send.
func TestImportNested(t *testing.T) {
	index := mutate.AppendManifests(empty.Index, entry{"plain", "", here("")}.add(t))
	for range 2 {
		index = mutate.AppendManifests(empty.Index, mutate.IndexAddendum{Add: index})
	}
	checkLayout(t, mutate.AppendManifests(empty.Index, mutate.IndexAddendum{Add: index}), "", "plain", "", "")
	index = mutate.AppendManifests(empty.Index, mutate.IndexAddendum{Add: index})
	checkLayout(t, mutate.AppendManifests(empty.Index, mutate.IndexAddendum{Add: index}), "", "", api.ErrImageInvalid, "index in an index")
}

// checkLayout imports from a layout: an image with one file, or an error.
func checkLayout(t *testing.T, index v1.ImageIndex, ref, want string, code api.Code, says string) {
	t.Helper()
	dir, s := t.TempDir(), testStore(t)
	if _, err := layouts.Write(dir, index); err != nil {
		t.Fatal(err)
	}
	img, err := s.ImportDir(t.Context(), dir, ImportOptions{Ref: ref})
	switch {
	case code != "":
		if !api.HasCode(err, code) || !strings.Contains(err.Error(), says) {
			t.Errorf("got error %v, want %s with %q", err, code, says)
		}
		checkNothingLeft(t, s)
	case err != nil:
		t.Errorf("import: %v", err)
	default:
		checkContents(t, s, img, want)
	}
}
