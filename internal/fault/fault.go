//go:build !faults

// Package fault marks the moments between the steps of what vmsan does to the
// host. A build with the tag faults can be told to die, fail or hang at each of
// them; in all others a mark is nothing.
package fault

// After is err, the outcome of the step that point is named after.
func After(_ string, err error) error { return err }

// Here is a point where nothing can fail.
func Here(string) {}
