package api

// PullEvent is one line of what image pull prints with --json. What it has
// depends on what happened.
type PullEvent struct {
	// Event is "resolved" when it is known what the image consists of, "layer"
	// when something became of a layer, and at last "pulled".
	Event string `json:"event"`

	// Of "resolved" and "pulled":
	Name     string `json:"name,omitempty"`     // the image's here
	Manifest string `json:"manifest,omitempty"` // its digest in the registry
	Layers   int    `json:"layers,omitempty"`

	// Of "layer":
	Layer int    `json:"layer,omitempty"` // from 1 on
	State string `json:"state,omitempty"` // waiting, downloading, kept or downloaded
	Bytes int64  `json:"bytes,omitempty"`
	Size  int64  `json:"size,omitempty"`

	// Digest is that of the layer's blob, or of the image's file.
	Digest string `json:"digest,omitempty"`
}
