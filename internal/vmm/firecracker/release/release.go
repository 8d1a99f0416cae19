// Package release gets releases of Firecracker from their makers, from a
// directory or from an archive, checks them and keeps them.
package release

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"runtime"

	"github.com/vmsan/vmsan/api"
	"github.com/vmsan/vmsan/internal/scratch"
	"github.com/vmsan/vmsan/internal/vmm/firecracker"
)

// Version is the release that is downloaded unless another is asked for.
const Version = "1.16.1"

// digests are those of Version's archives, SHA-256, by architecture. They are
// what its makers published, and what others have noted of it since: a page
// that was taken over later cannot hand out something else.
var digests = map[string]string{
	"x86_64":  "382a02a869e4d6d5cb14c40577f9545e8458021ea8b0b2d3fc10ec14d9c242e6",
	"aarch64": "8d0e69f6d6f9a1724551f607f18504052c16c1828ee3d4d7b6e6c73380871e0e",
}

// DefaultURL is where releases are downloaded from: their files are below it,
// in a directory for each version.
const DefaultURL = "https://github.com/firecracker-microvm/firecracker/releases/download"

// maxProgram bounds a program in bytes. Firecracker's are below 10 million.
const maxProgram = 128 << 20

// program matches the names that programs have in a release: bare, or with
// their version and architecture.
var program = regexp.MustCompile(`^(firecracker|jailer|seccompiler-bin)(-v[0-9][0-9A-Za-z.+~]*-[a-z0-9_]+)?$`)

// needed are the programs that a release cannot be without.
var needed = []string{"firecracker", "jailer"}

// arch is what the makers call this host's architecture.
func arch() string {
	if runtime.GOARCH == "arm64" {
		return "aarch64"
	}
	return "x86_64"
}

// Source is where a release comes from: one of the fields but the last two is
// given.
type Source struct {
	Download bool
	Dir      string // with the programs
	Archive  string // a release's archive, or one that Export has written

	Version string // of a download; default Version
	URL     string // of a download; default DefaultURL
}

// Store keeps releases in the directories of Dir, and makes them in Tmp.
type Store struct{ Dir, Tmp string }

// Path is the directory with the programs of a release. An empty name has an
// empty path.
func (s Store) Path(name string) string {
	if name == "" {
		return ""
	}
	return filepath.Join(s.Dir, name)
}

// manifestFile is in a release's directory.
const manifestFile = "release.json"

// Manifest describes a release.
type Manifest struct {
	Version string `json:"version"`
	// Programs are the digests of the programs, SHA-256, by name.
	Programs map[string]string `json:"programs"`
}

// Install has a release in place and returns its name.
func (s Store) Install(ctx context.Context, from Source) (name string, m Manifest, err error) {
	tmp, err := scratch.New(s.Tmp, "firecracker")
	if err != nil {
		return "", m, err
	}
	defer tmp.Close()
	const next = "release"
	dir := tmp.Join(next)
	if err := os.Mkdir(dir, 0o755); err != nil {
		return "", m, err
	}
	switch {
	case from.Dir != "":
		err = copyPrograms(from.Dir, dir)
	case from.Archive != "":
		err = unpackFile(from.Archive, dir)
	default:
		err = download(ctx, from, tmp.Join("archive"), dir)
	}
	if err != nil {
		return "", m, scratch.Explain(err)
	}
	if m, err = describe(ctx, dir); err != nil {
		return "", m, err
	}
	if from.Download && m.Version != from.version() {
		return "", m, unusable("it is version %s, not %s", m.Version, from.version())
	}
	if err := writeManifest(dir, m); err != nil {
		return "", m, scratch.Explain(err)
	}
	name = m.name()
	return name, m, tmp.Publish(next, s.Path(name))
}

// IsDownloadOf tells whether s is the download of a version.
func (s Source) IsDownloadOf(version string) bool { return s.Download && s.version() == version }

// String says what is done to get the release.
func (s Source) String() string {
	switch {
	case s.Dir != "":
		return "taking it from " + s.Dir
	case s.Archive != "":
		return "taking it from " + s.Archive
	}
	return "downloading " + s.version()
}

func (s Source) version() string {
	if s.Version == "" {
		return Version
	}
	return s.Version
}

func unusable(format string, args ...any) error {
	return api.Errorf(api.ErrSetupMissingBinary, "use this release of Firecracker: "+format, args...).
		WithHint("vmsan setup --firecracker, or --firecracker-dir with a release for %s, version 1.12 or newer", arch())
}

// describe finds out what programs a directory has.
func describe(ctx context.Context, dir string) (m Manifest, err error) {
	m.Programs = map[string]string{}
	for _, name := range needed {
		if _, err := os.Stat(filepath.Join(dir, name)); err != nil {
			return m, unusable("there is no %s in it", name)
		}
	}
	if m.Version, err = (firecracker.Driver{Dir: dir}).Version(ctx); err != nil {
		return m, unusable("%w", err)
	}
	files, err := os.ReadDir(dir)
	if err != nil {
		return m, err
	}
	for _, f := range files {
		if m.Programs[f.Name()], err = digest(filepath.Join(dir, f.Name())); err != nil {
			return m, err
		}
	}
	return m, nil
}

// name is the release's: releases that differ have different ones.
func (m Manifest) name() string {
	sum := sha256.New()
	for _, name := range needed {
		io.WriteString(sum, m.Programs[name])
	}
	return m.Version + "-" + hex.EncodeToString(sum.Sum(nil)[:6])
}

func digest(path string) (string, error) {
	file, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer file.Close()
	sum := sha256.New()
	if _, err := io.Copy(sum, file); err != nil {
		return "", err
	}
	return hex.EncodeToString(sum.Sum(nil)), nil
}

func writeManifest(dir string, m Manifest) error {
	text, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return err
	}
	return writeFile(filepath.Join(dir, manifestFile), text, 0o644)
}

// Check returns the manifest of a release, whose programs are what it says.
func (s Store) Check(name string) (m Manifest, err error) {
	text, err := os.ReadFile(filepath.Join(s.Path(name), manifestFile))
	if err == nil {
		err = json.Unmarshal(text, &m)
	}
	for _, program := range needed {
		if err == nil && m.Programs[program] == "" {
			err = fmt.Errorf("it has no %s", program)
		}
	}
	for program, want := range m.Programs {
		if err != nil {
			break
		}
		var got string
		if got, err = digest(filepath.Join(s.Path(name), filepath.Base(program))); err == nil && got != want {
			err = fmt.Errorf("%s is damaged", program)
		}
	}
	if err != nil {
		return m, fmt.Errorf("check Firecracker %s: %w", name, err)
	}
	return m, nil
}

// Prune removes the releases that are not to be kept.
func (s Store) Prune(keep func(name string) bool) error {
	entries, err := os.ReadDir(s.Dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	for _, e := range entries {
		if !keep(e.Name()) {
			err = errors.Join(err, os.RemoveAll(s.Path(e.Name())))
		}
	}
	return err
}
