package api

import "time"

// Image is what sandboxes start from.
type Image struct {
	Digest    string      `json:"digest"` // of its file
	Names     []string    `json:"names"`
	SizeBytes int64       `json:"sizeBytes"`
	CreatedAt time.Time   `json:"createdAt"` // when it was imported
	Source    string      `json:"source,omitempty"`
	Config    ImageConfig `json:"config"`
}

// ImageConfig is how an image wants to be run.
type ImageConfig struct {
	Env        []string          `json:"env,omitempty"`
	Workdir    string            `json:"workdir,omitempty"`
	User       string            `json:"user,omitempty"`
	Entrypoint []string          `json:"entrypoint,omitempty"`
	Cmd        []string          `json:"cmd,omitempty"`
	StopSignal string            `json:"stopSignal,omitempty"`
	Labels     map[string]string `json:"labels,omitempty"`
	Exposed    []string          `json:"exposed,omitempty"`
}

// ImageRemoved tells what image remove did with one image.
type ImageRemoved struct {
	// Names are those that were taken off it.
	Names []string `json:"names,omitempty"`
	// Digest is the removed image's, absent if it has other names and stays.
	Digest string `json:"digest,omitempty"`
}

// ImageArchive is an image that was written to a file.
type ImageArchive struct {
	Digest string `json:"digest"`
	Path   string `json:"path"`
}
