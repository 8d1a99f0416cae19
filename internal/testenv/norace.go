//go:build !race

package testenv

// MemoryFactor is how many times the memory that a process of vmsan may have it
// has under test.
const MemoryFactor = 1
