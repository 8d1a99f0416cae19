package sandbox

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"

	"github.com/vmsan/vmsan/api"
	"github.com/vmsan/vmsan/internal/registry"
	"github.com/vmsan/vmsan/internal/store"
)

// runtimes are the images that names of runtimes stand for, where
// runtimes.json does not say otherwise.
var runtimes = map[string]string{
	"base":       "debian",
	"node22":     "node:22-slim",
	"node24":     "node:24-slim",
	"python3.13": "python:3.13-slim",
}

// maxRuntimes bounds runtimes.json in bytes.
const maxRuntimes = 1 << 20

var runtimeForm = regexp.MustCompile(`^[a-z0-9][a-z0-9._-]{0,62}$`)

// Runtimes are the names of runtimes, with the image of each.
func (s *Service) Runtimes() (map[string]string, error) { return loadRuntimes(s.layout.Runtimes()) }

// RuntimeNames are the names of runtimes, sorted.
func RuntimeNames(l store.Layout) ([]string, error) {
	all, err := loadRuntimes(l.Runtimes())
	return slices.Sorted(maps.Keys(all)), err
}

func loadRuntimes(path string) (map[string]string, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return maps.Clone(runtimes), nil
	}
	if err != nil {
		return nil, fmt.Errorf("read runtimes: %w", err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxRuntimes))
	if err != nil {
		return nil, fmt.Errorf("read runtimes: %w", err)
	}
	all, err := parseRuntimes(data)
	if err != nil {
		return nil, api.Errorf(api.ErrRegistryConfig, "%s: %w", path, err)
	}
	return all, nil
}

func parseRuntimes(data []byte) (map[string]string, error) {
	var file struct {
		Runtimes map[string]string `json:"runtimes"`
	}
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	if err := d.Decode(&file); err != nil {
		return nil, err
	}
	all := maps.Clone(runtimes)
	for name, ref := range file.Runtimes {
		if !runtimeForm.MatchString(name) {
			return nil, fmt.Errorf("runtime %.100q: names are lower-case letters, digits and . _ -", name)
		}
		if _, err := registry.ParseReference(ref); err != nil {
			return nil, fmt.Errorf("runtime %s: %w", name, err)
		}
		all[name] = ref
	}
	return all, nil
}

// RuntimeImage is the image of a runtime. What is here under the runtime's own
// name stands in for an image that is not.
func (s *Service) RuntimeImage(name string) (string, error) {
	all, err := s.Runtimes()
	if err != nil {
		return "", err
	}
	ref, ok := all[name]
	if !ok {
		return "", api.Errorf(api.ErrValidationChoice, "Invalid --runtime: %.80q. Must be one of: %s.", name,
			strings.Join(slices.Sorted(maps.Keys(all)), ", ")).WithFlag("--runtime").
			WithHint("%s says what other runtimes there are", s.layout.Runtimes())
	}
	if _, err := s.localImage(ref); api.HasCode(err, api.ErrImageNotFound) {
		if _, err := s.images().Resolve(name); err == nil {
			return name, nil
		}
	}
	return ref, nil
}
