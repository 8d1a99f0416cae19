package gate

// known are the names that the architecture has.
func known(names []string) []string { return append([]string{"arch_prctl"}, names...) }
