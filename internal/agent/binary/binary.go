// Package binary holds the agent as it goes into guests, built for the same
// architecture as the binary it is part of.
package binary

import (
	"embed"
	"errors"
	"io/fs"
	"strings"

	"github.com/vmsan/vmsan/api"
)

// `make build` puts the agent there before it builds vmsan. The directory is
// embedded rather than the file, so that everything else compiles without.
//
//go:embed all:dist
var dist embed.FS

// Agent returns the agent's ELF file.
func Agent() ([]byte, error) {
	agent, err := dist.ReadFile("dist/vmsan-agent")
	if errors.Is(err, fs.ErrNotExist) {
		return nil, api.Errorf(api.ErrSetupMissingBinary, "this vmsan was built without its guest agent").
			WithHint("make build")
	}
	return agent, err
}

// Digest is the hexadecimal SHA-256 of the agent, known since it was built, or
// empty if there is none.
func Digest() string {
	digest, err := dist.ReadFile("dist/vmsan-agent.sha256")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(digest))
}
