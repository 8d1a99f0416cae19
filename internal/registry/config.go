package registry

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"

	"github.com/vmsan/vmsan/api"
)

// maxConfig bounds registries.json in bytes.
const maxConfig = 1 << 20

// Config says how registries are reached that are not like most.
type Config struct {
	// Registries has an entry for each HOST[:PORT].
	Registries map[string]Host `json:"registries"`
}

// Host is how one registry, or mirror, is reached.
type Host struct {
	// Insecure hosts may speak plain HTTP, and their certificates are not
	// checked. Hosts on loopback may always speak plain HTTP.
	Insecure bool `json:"insecure,omitempty"`
	// CA is a file of certificates, in PEM, that are trusted for this host
	// besides the system's.
	CA string `json:"ca,omitempty"`
	// Mirrors are asked first, in order, as HOST[:PORT][/PREFIX].
	Mirrors []string `json:"mirrors,omitempty"`
}

// LoadConfig reads the file at path. If it is missing, all registries are
// like most.
func LoadConfig(path string) (Config, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return Config{}, nil
	}
	if err != nil {
		return Config{}, fmt.Errorf("read registries: %w", err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxConfig))
	if err != nil {
		return Config{}, fmt.Errorf("read registries: %w", err)
	}
	c, err := parseConfig(data)
	if err != nil {
		return Config{}, api.Errorf(api.ErrRegistryConfig, "%s: %w", path, err)
	}
	return c, nil
}

func parseConfig(data []byte) (Config, error) {
	var read Config
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	if err := d.Decode(&read); err != nil {
		return Config{}, err
	}
	c := Config{Registries: map[string]Host{}}
	for typed, host := range read.Registries {
		reg, err := name.NewRegistry(typed)
		if err != nil || typed == "" {
			return Config{}, fmt.Errorf("%.100q is not HOST[:PORT]", typed)
		}
		if err := host.check(); err != nil {
			return Config{}, fmt.Errorf("%s: %w", typed, err)
		}
		c.Registries[reg.RegistryStr()] = host
	}
	return c, nil
}

func (h Host) check() error {
	if h.CA != "" && !filepath.IsAbs(h.CA) {
		return fmt.Errorf("the path %.200q is not absolute", h.CA)
	}
	for _, mirror := range h.Mirrors {
		if _, err := mirrored(mirror, "repository"); err != nil {
			return fmt.Errorf("%.200q is not HOST[:PORT][/PREFIX]", mirror)
		}
	}
	return nil
}

// mirrored is where a mirror has a repository.
func mirrored(mirror, repository string) (name.Repository, error) {
	host, prefix, _ := strings.Cut(mirror, "/")
	if host == "" || !form.MatchString(strings.TrimSuffix(mirror, "/")+"/repository") {
		return name.Repository{}, errors.New("it is malformed")
	}
	reg, err := name.NewRegistry(host)
	if err != nil {
		return name.Repository{}, err
	}
	if prefix != "" {
		repository = strings.TrimSuffix(prefix, "/") + "/" + repository
	}
	// With a registry in front, which keeps the library from guessing one.
	repo, err := name.NewRepository("registry.invalid/" + repository)
	repo.Registry = reg
	return repo, err
}
