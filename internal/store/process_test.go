package store

import (
	"os"
	"testing"
	"time"
)

func TestCPUTime(t *testing.T) {
	p := ProcessOf(os.Getpid())
	before, err := p.CPUTime()
	if err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(time.Minute); ; {
		now, err := p.CPUTime()
		if err != nil || now < before {
			t.Fatalf("%s after %s, %v", now, before, err)
		}
		if now >= before+3*tick {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("it works, and its CPU time stands still")
		}
	}
	p.StartTicks++
	if d, err := p.CPUTime(); err == nil {
		t.Errorf("another process has %s", d)
	}
	if d, err := (Process{}).CPUTime(); err == nil {
		t.Errorf("no process has %s", d)
	}
}
