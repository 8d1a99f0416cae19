package agent

import (
	"errors"
	"os"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestReaperLosesNoEnd(t *testing.T) {
	r := newReaper(false, nil)
	defer r.stop()
	// Another waiter in the same process must keep its own.
	other := exec.Command("sh", "-c", "sleep 0.2; exit 9")
	if err := other.Start(); err != nil {
		t.Fatal(err)
	}
	checkEnds(t, r)
	if err := other.Wait(); other.ProcessState.ExitCode() != 9 {
		t.Errorf("os/exec: %v", err)
	}
}

// checkEnds starts many processes that end at once and wants the status of each.
func checkEnds(t *testing.T, r *reaper) {
	t.Helper()
	var group sync.WaitGroup
	for i := range 60 {
		group.Go(func() {
			pid, ended, err := r.start("/bin/sh", []string{"sh", "-c", "exit " + itoa(i)}, &syscall.ProcAttr{Env: []string{}})
			if err != nil {
				t.Errorf("start: %v", err)
				return
			}
			select {
			case status := <-ended:
				if status.ExitStatus() != i {
					t.Errorf("exit %d: got %v", i, status)
				}
			case <-time.After(20 * time.Second):
				t.Errorf("the end of %d was lost", pid)
			}
			if err := r.signal(pid, syscall.SIGKILL); !errors.Is(err, syscall.ESRCH) {
				t.Errorf("signal after the end: %v", err)
			}
		})
	}
	group.Wait()
}

func TestReaperReportsFailedStarts(t *testing.T) {
	r := newReaper(false, nil)
	defer r.stop()
	if _, _, err := r.start("/no/such", []string{"x"}, &syscall.ProcAttr{}); !errors.Is(err, syscall.ENOENT) {
		t.Errorf("got %v", err)
	}
}

const subreaperVariable = "VMSAN_TEST_SUBREAPER"

// PID 1 also reaps what it never started. The test runs itself again as a process that orphans fall to.
func TestReaperOfOrphans(t *testing.T) {
	if os.Getenv(subreaperVariable) != "" {
		reapOrphans(t)
		return
	}
	command := exec.Command(os.Args[0], "-test.run=^TestReaperOfOrphans$", "-test.v")
	command.Env = append(os.Environ(), subreaperVariable+"=1")
	text, err := command.CombinedOutput()
	if err != nil || !strings.Contains(string(text), "--- PASS") {
		t.Errorf("%v\n%s", err, text)
	}
}

func reapOrphans(t *testing.T) {
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		t.Fatal(err)
	}
	var swept atomic.Int32
	r := newReaper(true, func() { swept.Add(1) })
	defer r.stop()
	_, ended, err := r.start("/bin/sh", []string{"sh", "-c", "(sleep 0.3; exit 1) & exit 7"}, &syscall.ProcAttr{Env: []string{}})
	if err != nil {
		t.Fatal(err)
	}
	if status := <-ended; status.ExitStatus() != 7 {
		t.Errorf("got %v", status)
	}
	checkEnds(t, r)
	eventually(t, "the orphan to be reaped", func() bool {
		// WNOWAIT looks and takes nothing.
		err := unix.Waitid(unix.P_ALL, 0, nil, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT, nil)
		return err == syscall.ECHILD
	})
	if swept.Load() == 0 {
		t.Error("nothing was swept")
	}
}
