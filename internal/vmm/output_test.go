package vmm

import (
	"fmt"
	"io"
	"os"
	"strings"
	"testing"
)

func TestComplaint(t *testing.T) {
	for name, c := range map[string]struct{ printed, want string }{
		"nothing":        {"", ""},
		"only a warning": {"qemu: warning: TCG lacks a feature\n", ""},
		"after warnings": {"qemu: warning: one\nqemu: warning: two\nqemu: error: failed to set MSR\nqemu: Assertion failed.\n", "failed to set MSR"},
		"no newline":     {"qemu: no such file", "no such file"},
		"other program":  {"bash: no such file\n", "bash: no such file"},
		"cursor":         {"qemu: \x1b[2Jhello\n", "?[2Jhello"},
		"long":           {strings.Repeat("x", 1<<20), strings.Repeat("x", maxComplaint)},
	} {
		t.Run(name, func(t *testing.T) {
			log, err := os.CreateTemp(t.TempDir(), "log")
			if err != nil {
				t.Fatal(err)
			}
			defer log.Close()
			o, err := NewOutput(log)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := io.WriteString(o.File(), c.printed); err != nil {
				t.Fatal(err)
			}
			o.Close()
			if got := o.Complaint("qemu"); got != c.want {
				t.Errorf("got %q, want %q", got, c.want)
			}
			if written, err := os.ReadFile(log.Name()); err != nil || string(written) != c.printed {
				t.Errorf("the log holds %d bytes of %d, %v", len(written), len(c.printed), err)
			}
		})
	}
}

// Something that the VMM left running keeps its output open; the end of the
// machine does not wait for that.
func TestOutputHeldOpen(t *testing.T) {
	o, err := NewOutput(nil)
	if err != nil {
		t.Fatal(err)
	}
	held, err := os.OpenFile(fmt.Sprintf("/proc/self/fd/%d", o.File().Fd()), os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer held.Close()
	io.WriteString(held, "qemu: it is me\n")
	o.Close()
	if got := o.Complaint("qemu"); got != "it is me" {
		t.Errorf("got %q", got)
	}
}
