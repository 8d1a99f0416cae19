package image

import (
	"encoding/json"
	"fmt"
	"maps"
	"path"
	"regexp"
	"slices"
	"strings"

	"github.com/vmsan/vmsan/api"
)

// Bounds on what a configuration says. It is kept in records of sandboxes.
const (
	maxConfigEnv   = 48 << 10
	maxConfigWords = 64 << 10 // of entrypoint and command
	maxConfigText  = 4095
	maxLabels      = 1000
	maxLabelBytes  = 256 << 10
)

var (
	userForm   = regexp.MustCompile(`^[a-zA-Z0-9_][a-zA-Z0-9_.-]{0,31}(:[a-zA-Z0-9_][a-zA-Z0-9_.-]{0,31})?$`)
	signalForm = regexp.MustCompile(`^([0-9]{1,2}|(SIG)?[A-Z][A-Z0-9+-]{1,15})$`)
)

// ParseConfig reads how an image wants to be run from its configuration in the
// OCI's or Docker's form. What no sandbox can honour is ErrImageInvalid.
func ParseConfig(data []byte) (Config, error) {
	var raw struct {
		Config struct {
			Env          []string
			WorkingDir   string
			User         string
			Entrypoint   []string
			Cmd          []string
			StopSignal   string
			Labels       map[string]string
			ExposedPorts map[string]struct{}
		} `json:"config"`
	}
	if err := json.Unmarshal(data, &raw); err != nil {
		return Config{}, api.Errorf(api.ErrImageInvalid, "read image's configuration: %w", err)
	}
	c := Config{
		Env: raw.Config.Env, Workdir: raw.Config.WorkingDir, User: raw.Config.User,
		Entrypoint: raw.Config.Entrypoint, Cmd: raw.Config.Cmd, StopSignal: raw.Config.StopSignal,
		Labels: raw.Config.Labels, Exposed: slices.Sorted(maps.Keys(raw.Config.ExposedPorts)),
	}
	if c.Workdir != "" {
		c.Workdir = path.Clean("/" + c.Workdir)
	}
	if err := c.check(); err != nil {
		return Config{}, api.Errorf(api.ErrImageInvalid, "image's configuration: %w", err)
	}
	return c, nil
}

func (c Config) check() error {
	size := 0
	for _, e := range c.Env {
		name, _, ok := strings.Cut(e, "=")
		if size += len(e) + 1; !ok || name == "" || strings.ContainsRune(e, 0) || size > maxConfigEnv {
			return fmt.Errorf("environment variable %.80q is malformed, or too much", e)
		}
	}
	size = 0
	for _, word := range slices.Concat(c.Entrypoint, c.Cmd) {
		if size += len(word) + 1; strings.ContainsRune(word, 0) || size > maxConfigWords {
			return fmt.Errorf("word %.80q of its command is malformed, or too long", word)
		}
	}
	if len(c.Workdir) > maxConfigText || strings.ContainsRune(c.Workdir, 0) {
		return fmt.Errorf("working directory %.80q is malformed", c.Workdir)
	}
	if c.User != "" && !userForm.MatchString(c.User) {
		return fmt.Errorf("user %.80q is malformed", c.User)
	}
	if c.StopSignal != "" && !signalForm.MatchString(c.StopSignal) {
		return fmt.Errorf("stop signal %.80q is malformed", c.StopSignal)
	}
	size = 0
	for key, value := range c.Labels {
		size += len(key) + len(value)
	}
	if size > maxLabelBytes || len(c.Labels) > maxLabels || len(c.Exposed) > maxLabels {
		return fmt.Errorf("it has too many labels or ports")
	}
	return nil
}

// Command is what a sandbox runs if nothing else is asked for.
func (c Config) Command() []string { return slices.Concat(c.Entrypoint, c.Cmd) }
