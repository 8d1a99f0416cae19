package api

// Version says what program this is.
type Version struct {
	Version string `json:"version"`
	Go      string `json:"go"`
	OS      string `json:"os"`
	Arch    string `json:"arch"`
}

// SetupCheck says whether sandboxes can be created in a state directory.
type SetupCheck struct {
	Ready bool `json:"ready"`
	// Missing is what setup would have to do; empty if Ready.
	Missing []SetupItem `json:"missing"`
}

// SetupItem is a step of setup that has to be done.
type SetupItem struct {
	Step   string `json:"step"`
	Detail string `json:"detail"`
}

// Completion is a script that makes a shell complete vmsan's arguments.
type Completion struct {
	Shell  string `json:"shell"`
	Script string `json:"script"`
}
