package agent

import (
	"net/http"
	"runtime"
	"sync"
)

// A goroutine in a system call keeps its processor, in the runtime's sense, only as long as there is another
// idle one; or else the runtime's monitor takes it away after 20 us, goes to sleep, and is woken at the call's
// end to do the same in the next (retake and exitsyscall in Go's runtime/proc.go). Under emulation each call
// takes longer than that. So where there are thousands of them a guest with one CPU has a second processor.
var spare struct {
	sync.Mutex
	users int
}

// withSpare has handler run with a processor to spare.
func withSpare(handler http.HandlerFunc) http.HandlerFunc {
	if runtime.NumCPU() > 1 {
		return handler // there is one most of the time
	}
	return func(w http.ResponseWriter, r *http.Request) {
		takeSpare()
		defer putSpare()
		handler(w, r)
	}
}

func takeSpare() {
	spare.Lock()
	defer spare.Unlock()
	if spare.users++; spare.users == 1 {
		runtime.GOMAXPROCS(2)
	}
}

func putSpare() {
	spare.Lock()
	defer spare.Unlock()
	if spare.users--; spare.users == 0 {
		runtime.SetDefaultGOMAXPROCS()
	}
}
