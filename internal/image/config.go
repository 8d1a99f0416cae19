package image

import (
	"crypto/sha256"
	"encoding/json"
	"reflect"
)

// Config is how the image wants to be run. All of it is optional.
type Config struct {
	// Env has KEY=VALUE entries.
	Env []string `json:"env,omitempty"`
	// Workdir is an absolute path.
	Workdir string `json:"workdir,omitempty"`
	// User is a name or number, with ":group" behind it perhaps.
	User       string   `json:"user,omitempty"`
	Entrypoint []string `json:"entrypoint,omitempty"`
	Cmd        []string `json:"cmd,omitempty"`
	// StopSignal is the signal that asks the main process to end, such as
	// "SIGTERM" or "15".
	StopSignal string            `json:"stop_signal,omitempty"`
	Labels     map[string]string `json:"labels,omitempty"`
	// Exposed are the ports that something in the image listens on, such as
	// "80/tcp". They are for people to read.
	Exposed []string `json:"exposed,omitempty"`
}

// id is the file system's, so that images that differ in nothing but their
// configuration are two.
func (c Config) id() (id [16]byte, err error) {
	if reflect.DeepEqual(c, Config{}) {
		return id, nil
	}
	data, err := json.Marshal(c)
	if err != nil {
		return id, err
	}
	sum := sha256.Sum256(data)
	copy(id[:], sum[:])
	return id, nil
}
