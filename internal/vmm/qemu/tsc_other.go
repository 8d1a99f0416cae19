//go:build !amd64

package qemu

// tscParameter is for x86 alone: other guests read a counter whose rate the
// machine tells them.
func tscParameter() []string { return nil }

func tscKHz() uint64 { return 0 }
