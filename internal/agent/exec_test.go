package agent

import (
	"testing"
)

func TestExitCode(t *testing.T) {
	g := newGuest(t)
	for code := range 4 {
		r := g.mustRun(t, shell("echo out; echo err >&2; exit "+itoa(code)))
		if int(r.end.GetExitCode()) != code || !r.end.GetExited() || string(r.stdout) != "out\n" || string(r.stderr) != "err\n" {
			t.Errorf("exit %d: got %v, stdout %q, stderr %q", code, r.end, r.stdout, r.stderr)
		}
	}
}
