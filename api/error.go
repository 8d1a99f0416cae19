package api

import (
	"errors"
	"fmt"
)

// Error is what every failed command prints with --json, inside
// {"error": ...}, and what the packages below return for a failure that a
// user can act on.
type Error struct {
	Code    Code   `json:"code"`
	Message string `json:"message"`
	// Hint tells what to do about it and names a command to type. Optional.
	Hint string `json:"hint,omitempty"`
	// Flag is the command line flag at fault, with its dashes. Optional.
	Flag string `json:"flag,omitempty"`
	// VM is the sandbox concerned, as the user named it. Optional.
	VM string `json:"vm,omitempty"`
	// Console holds the last lines of the guest's console. Optional.
	Console []string `json:"console,omitempty"`
	// Log holds the last lines of what the VMM said, and what watches over it.
	// Optional.
	Log []string `json:"log,omitempty"`

	cause error
}

// Errorf makes an Error whose message is formatted like fmt.Errorf. What %w
// names can be found again with errors.Is and errors.As.
func Errorf(code Code, format string, args ...any) *Error {
	err := fmt.Errorf(format, args...)
	return &Error{Code: code, Message: err.Error(), cause: errors.Unwrap(err)}
}

// WithHint sets the hint and returns e.
func (e *Error) WithHint(format string, args ...any) *Error {
	e.Hint = fmt.Sprintf(format, args...)
	return e
}

// WithFlag names the flag at fault and returns e.
func (e *Error) WithFlag(flag string) *Error {
	e.Flag = flag
	return e
}

// WithVM names the sandbox concerned and returns e.
func (e *Error) WithVM(vm string) *Error {
	e.VM = vm
	return e
}

func (e *Error) Error() string { return e.Message }

func (e *Error) Unwrap() error { return e.cause }

// Is makes errors.Is(err, &Error{Code: c}) true for every Error with that
// code, whatever its message.
func (e *Error) Is(target error) bool {
	t, ok := target.(*Error)
	return ok && t.Code == e.Code && t.Message == ""
}

// HasCode tells whether err, or an error it wraps, is an Error with code.
func HasCode(err error, code Code) bool {
	return errors.Is(err, &Error{Code: code})
}

// AsError finds the Error in err's chain. Its message becomes the whole
// chain's, so that nothing said on the way up is lost. An error without one
// becomes an internal error.
func AsError(err error) *Error {
	var e *Error
	if !errors.As(err, &e) {
		return &Error{Code: ErrInternal, Message: err.Error(), cause: err}
	}
	out := *e
	out.Message = err.Error()
	return &out
}
