package usage

import (
	"os"
	"os/exec"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestRunnable(t *testing.T) {
	before, err := RunnableOf(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	const work = 50 * time.Millisecond
	for after, end := before, time.Now().Add(time.Minute); after.Ran-before.Ran < work; {
		if after, err = RunnableOf(os.Getpid()); err != nil {
			t.Fatal(err)
		}
		if time.Now().After(end) {
			t.Fatalf("a process that worked for a minute went from %+v to %+v", before, after)
		}
	}
	if _, err := RunnableOf(1 << 30); err == nil {
		t.Error("a process that does not exist was measured")
	}
}

func TestRunnableOfStopped(t *testing.T) {
	cmd := exec.Command("sleep", "1000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
	defer cmd.Process.Kill()
	if err := cmd.Process.Signal(unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
		r, err := RunnableOf(cmd.Process.Pid)
		if err != nil {
			t.Fatal(err)
		}
		if r.Held {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("a process that was stopped is not held: %+v", r)
		}
	}
}
