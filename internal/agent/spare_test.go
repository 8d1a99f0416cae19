package agent

import (
	"runtime"
	"testing"
)

// The processor to spare is there from the first user to the last.
func TestSpare(t *testing.T) {
	defer runtime.SetDefaultGOMAXPROCS()
	runtime.GOMAXPROCS(1)
	takeSpare()
	if n := runtime.GOMAXPROCS(7); n != 2 { // a number that nobody sets
		t.Errorf("with a user there are %d processors", n)
	}
	takeSpare()
	putSpare()
	if n := runtime.GOMAXPROCS(0); n != 7 {
		t.Errorf("with one of two users left the number was set to %d", n)
	}
	putSpare()
	if n := runtime.GOMAXPROCS(0); n == 7 {
		t.Error("the number stays when all users have gone")
	}
}
