package api

import (
	"encoding/base64"
	"time"
	"unicode/utf8"
)

// Started is a detached command.
type Started struct {
	VM  string `json:"vm"`
	PID int    `json:"pid"`
}

// Execution is a command that ran to its end.
type Execution struct {
	VM string `json:"vm"`
	// ExitCode is what vmsan exits with: 128+N for signal N, 124 after a
	// timeout.
	ExitCode int    `json:"exitCode"`
	Signal   int    `json:"signal,omitempty"`
	TimedOut bool   `json:"timedOut,omitempty"`
	Stdout   Output `json:"stdout"`
	Stderr   Output `json:"stderr"`
}

// Output is what a command wrote: Text if it is valid UTF-8, else Base64.
type Output struct {
	Text   string `json:"text,omitempty"`
	Base64 string `json:"base64,omitempty"`
}

// NewOutput chooses the form that data fits.
func NewOutput(data []byte) Output {
	if utf8.Valid(data) {
		return Output{Text: string(data)}
	}
	return Output{Base64: base64.StdEncoding.EncodeToString(data)}
}

// Process is a command in a sandbox.
type Process struct {
	PID       int       `json:"pid"`
	Args      []string  `json:"args"`
	User      string    `json:"user,omitempty"`
	Workdir   string    `json:"workdir,omitempty"`
	Running   bool      `json:"running"`
	ExitCode  *int      `json:"exitCode,omitempty"`
	StartedAt time.Time `json:"startedAt"`
	// Kept is true if its output can be read with attach.
	Kept bool `json:"kept"`
	// Terminal is true if it runs on one.
	Terminal bool `json:"terminal"`
}

// Signalled is a signal that was sent.
type Signalled struct {
	VM     string `json:"vm"`
	PID    int    `json:"pid"`
	Signal int    `json:"signal"`
}

// Log is what a sandbox wrote to its console.
type Log struct {
	VM  string `json:"vm"`
	Log Output `json:"log"`
}

// Results is what a command did to the sandboxes that were named, in their
// order.
type Results struct {
	Results []Result `json:"results"`
}

// Result is what a command that takes several sandboxes did to one of them.
type Result struct {
	VM string `json:"vm"`
	// Status is the sandbox's status now; empty if it is gone or that is not
	// known.
	Status Status `json:"status,omitempty"`
	// Trace is how long the stages of a start took.
	Trace []Stage `json:"trace,omitempty"`
	// Error is absent if it went well.
	Error *Error `json:"error,omitempty"`
}
