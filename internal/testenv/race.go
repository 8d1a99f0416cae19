//go:build race

package testenv

// MemoryFactor is how many times the memory that a process of vmsan may have it
// has under test: the race detector takes five to ten times as much
// (go.dev/doc/articles/race_detector).
const MemoryFactor = 10
