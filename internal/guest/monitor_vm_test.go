package guest_test

import (
	"bytes"
	"strings"
	"testing"

	"github.com/vmsan/vmsan/internal/guest"
	"github.com/vmsan/vmsan/internal/testenv"
)

// TestTimersAreOnTime asks for how much the kernel may let threads oversleep,
// which the agent makes longer for some of its own while it boots, and which
// commands inherit.
func TestTimersAreOnTime(t *testing.T) {
	vmsan := testenv.RequireVmsan(t)
	const show = `cat /proc/self/timerslack_ns; for thread in /proc/1/task/*; do cat /proc/${thread##*/}/timerslack_ns; done`
	var out bytes.Buffer
	exit, err := dial(t, vmsan, vmsan.Create(t)).Run(t.Context(), guest.Command{Args: []string{"sh", "-c", show}, Stdout: &out})
	if err != nil || exit.Code != 0 {
		t.Fatalf("%+v, %v", exit, err)
	}
	const onTime = "50000" // ns, the kernel's default (init/init_task.c)
	slacks := strings.Fields(out.String())
	if len(slacks) < 3 {
		t.Fatalf("threads of PID 1: got %d", len(slacks)-1)
	}
	for _, slack := range slacks {
		if slack != onTime {
			t.Errorf("timer slack: got %s, want %s", slack, onTime)
		}
	}
}
