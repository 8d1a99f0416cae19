package main

import (
	"bytes"
	"debug/buildinfo"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	cdx "github.com/CycloneDX/cyclonedx-go"
)

// bom lists the modules that are in the binary, as the linker has noted them
// there. The agent in it is made of some of the same.
func (r release) bom() ([]byte, error) {
	info, err := buildinfo.ReadFile(r.binary)
	if err != nil {
		return nil, fmt.Errorf("read what is in %s: %w", r.binary, err)
	}
	bom := cdx.NewBOM()
	bom.Metadata = &cdx.Metadata{
		Timestamp: r.made.Format(time.RFC3339),
		Component: &cdx.Component{
			BOMRef: "vmsan", Type: cdx.ComponentTypeApplication, Name: "vmsan", Version: r.version,
			PackageURL: purl(info.Main.Path, r.version), Licenses: &cdx.Licenses{{License: &cdx.License{ID: "Apache-2.0"}}},
		},
	}
	components := []cdx.Component{component("std", strings.TrimPrefix(info.GoVersion, "go"), "")}
	for _, module := range info.Deps {
		if module.Replace != nil {
			module = module.Replace
		}
		components = append(components, component(module.Path, module.Version, module.Sum))
	}
	slices.SortFunc(components, func(a, b cdx.Component) int { return strings.Compare(a.BOMRef, b.BOMRef) })
	var refs []string
	for _, c := range components {
		refs = append(refs, c.BOMRef)
	}
	bom.Components = &components
	bom.Dependencies = &[]cdx.Dependency{{Ref: "vmsan", Dependencies: &refs}}
	var out bytes.Buffer
	err = cdx.NewBOMEncoder(&out, cdx.BOMFileFormatJSON).SetPretty(true).Encode(bom)
	return out.Bytes(), err
}

func component(path, version, sum string) cdx.Component {
	c := cdx.Component{BOMRef: purl(path, version), Type: cdx.ComponentTypeLibrary, Name: path, Version: version, PackageURL: purl(path, version)}
	if sum != "" {
		// A digest of Go's own kind, which those of the format have no name for.
		c.Properties = &[]cdx.Property{{Name: "vmsan:go-sum", Value: sum}}
	}
	return c
}

func purl(path, version string) string { return "pkg:golang/" + path + "@" + version }

// writeBOM writes the list beside the packages, too.
func writeBOM(path string, tree []file) error {
	i := slices.IndexFunc(tree, func(f file) bool { return f.path == bomPath })
	return os.WriteFile(path, tree[i].content, 0o644)
}
