package link

import (
	"strconv"
	"strings"
)

// Main is what a guest runs from the beginning, and ends with.
type Main struct {
	Args []string `json:"args"`
	// Restart says when it is started again: "" never, "always",
	// "on-failure", or "on-failure:N", which is N times.
	Restart string `json:"restart,omitempty"`
	// StopSignal asks it to end. 0: it is asked as all others are.
	StopSignal int `json:"stop_signal,omitempty"`
}

// Again tells whether a process that ended is started again: with which code,
// and how often it has failed by then.
func (m Main) Again(code, failures int) bool {
	if m.Restart == "always" {
		return true
	}
	policy, limit, limited := strings.Cut(m.Restart, ":")
	if policy != "on-failure" || code == 0 {
		return false
	}
	most, err := strconv.Atoi(limit)
	return !limited || err == nil && failures <= most
}
