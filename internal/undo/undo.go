// Package undo takes back what a sequence of steps has done.
package undo

import "errors"

// Stack holds the undo of each step done so far. Its zero value is empty. It
// is for one goroutine.
type Stack struct{ steps []func() error }

// Add adds the undo of the step that was just done.
func (s *Stack) Add(step func() error) { s.steps = append(s.steps, step) }

// Run undoes everything, the last step first, whatever fails on the way, and
// leaves the stack empty.
func (s *Stack) Run() error {
	var errs []error
	for len(s.steps) > 0 {
		last := len(s.steps) - 1
		step := s.steps[last]
		s.steps = s.steps[:last]
		errs = append(errs, step())
	}
	return errors.Join(errs...)
}
