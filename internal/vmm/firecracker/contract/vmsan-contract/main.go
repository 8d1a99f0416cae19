// Command vmsan-contract stands in for Firecracker and its jailer in tests, by
// the name that it is called.
package main

import "github.com/vmsan/vmsan/internal/vmm/firecracker/contract"

func main() { contract.Main() }
