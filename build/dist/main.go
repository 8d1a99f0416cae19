// Command dist makes what is published of vmsan: for each architecture a Debian
// package, an archive for other systems and a list of what is in the binary, and
// the digests of all. The same source makes the same bytes.
package main

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// release is what is made, for one architecture.
type release struct {
	version string
	arch    string // as Go and Debian call it
	binary  string // path
	made    time.Time
	source  string // top of the source tree
	out     string // directory
	// compression is the package's, as dpkg-deb calls it.
	compression string
}

func main() {
	r := release{source: ".", compression: "xz"}
	var binaries string
	flag.StringVar(&r.version, "version", "", "version, as Debian orders them")
	flag.StringVar(&binaries, "binaries", "", "directory with ARCH/vmsan")
	flag.StringVar(&r.out, "out", "dist", "directory to fill")
	flag.Parse()
	if err := run(r, binaries); err != nil {
		fmt.Fprintln(os.Stderr, "dist:", err)
		os.Exit(1)
	}
}

func run(r release, binaries string) error {
	seconds, err := strconv.ParseInt(os.Getenv("SOURCE_DATE_EPOCH"), 10, 64)
	if err != nil {
		return fmt.Errorf("SOURCE_DATE_EPOCH is no time: %w", err)
	}
	r.made = time.Unix(seconds, 0).UTC()
	found, err := filepath.Glob(filepath.Join(binaries, "*", "vmsan"))
	if err != nil || len(found) == 0 {
		return errors.Join(fmt.Errorf("no %s/ARCH/vmsan", binaries), err)
	}
	var all []string
	for _, r.binary = range found {
		r.arch = filepath.Base(filepath.Dir(r.binary))
		files, err := r.make()
		if err != nil {
			return fmt.Errorf("make the release for %s: %w", r.arch, err)
		}
		all = append(all, files...)
	}
	return writeSums(r.out, all)
}

// make makes the files for one architecture, and returns their names.
func (r release) make() ([]string, error) {
	tree, err := r.files()
	if err != nil {
		return nil, err
	}
	var names []string
	for _, step := range []struct {
		name string
		make func(path string, tree []file) error
	}{
		{fmt.Sprintf("vmsan_%s_%s.deb", r.version, r.arch), r.writeDeb},
		{fmt.Sprintf("vmsan-%s-linux-%s.tar.gz", r.version, r.arch), r.writeArchive},
		{fmt.Sprintf("vmsan-%s-linux-%s.cdx.json", r.version, r.arch), writeBOM},
	} {
		if err := step.make(filepath.Join(r.out, step.name), tree); err != nil {
			return nil, fmt.Errorf("%s: %w", step.name, err)
		}
		names = append(names, step.name)
	}
	return names, nil
}

// writeSums writes what sha256sum --check reads.
func writeSums(dir string, names []string) error {
	slices.Sort(names)
	var sums bytes.Buffer
	for _, name := range names {
		content, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			return err
		}
		fmt.Fprintf(&sums, "%x  %s\n", sha256.Sum256(content), name)
	}
	return os.WriteFile(filepath.Join(dir, "SHA256SUMS"), sums.Bytes(), 0o644)
}

// file is one of those that are installed.
type file struct {
	path    string // below /
	mode    os.FileMode
	content []byte
}

// bomPath is where the list of what is in the binary is installed.
const bomPath = "usr/share/doc/vmsan/sbom.cdx.json"

// files are those that are installed, in the order of their paths.
func (r release) files() ([]file, error) {
	binary, err := os.ReadFile(r.binary)
	if err != nil {
		return nil, err
	}
	files := []file{{"usr/bin/vmsan", 0o755, binary}}
	add := func(path string, content []byte) { files = append(files, file{path, 0o644, content}) }
	for path, name := range map[string]string{
		"usr/share/doc/vmsan/README.md":                "README.md",
		"usr/share/doc/vmsan/copyright":                "build/dist/files/copyright",
		"usr/lib/systemd/system/vmsan-restore.service": "build/dist/files/vmsan-restore.service",
	} {
		content, err := os.ReadFile(filepath.Join(r.source, name))
		if err != nil {
			return nil, err
		}
		add(path, content)
	}
	changes, err := r.changelog()
	if err != nil {
		return nil, err
	}
	add("usr/share/doc/vmsan/NEWS.gz", compressed(changes))
	bom, err := r.bom()
	if err != nil {
		return nil, err
	}
	add(bomPath, bom)
	for path, content := range completions() {
		add(path, content)
	}
	manuals, err := r.manuals()
	if err != nil {
		return nil, err
	}
	for name, content := range manuals {
		add("usr/share/man/man1/"+name+".gz", compressed(content))
	}
	slices.SortFunc(files, func(a, b file) int { return strings.Compare(a.path, b.path) })
	return files, nil
}

// changelog is what has changed since the last release.
func (r release) changelog() ([]byte, error) {
	names, err := filepath.Glob(filepath.Join(r.source, "changelog/unreleased/*.md"))
	if err != nil {
		return nil, err
	}
	text := bytes.NewBufferString("vmsan " + r.version + "\n")
	for _, name := range names {
		content, err := os.ReadFile(name)
		if err != nil {
			return nil, err
		}
		text.WriteString("\n" + string(bytes.TrimSpace(content)) + "\n")
	}
	return text.Bytes(), nil
}
