package cli

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"

	"github.com/vmsan/vmsan/api"
)

func TestExplain(t *testing.T) {
	dir := stateDir(t)
	for _, typed := range []string{"ERR_VM_BOOT", "vm-boot", "err_vm_boot"} {
		got := vmsan(t, dir, "explain", typed)
		if got.exit != 0 || !strings.HasPrefix(got.stdout, "ERR_VM_BOOT, exit code 10: the sandbox did not come up.\n\nUsual causes:\n  - ") {
			t.Errorf("%s: %+v", typed, got)
		}
	}
	got := vmsan(t, dir, "explain", "disk-full", "--json")
	var e api.Explanation
	if err := json.Unmarshal([]byte(got.stdout), &e); err != nil || e.Code != api.ErrDiskFull || len(e.Remedies) == 0 {
		t.Errorf("as JSON: %v, %+v", err, got)
	}
	if got := vmsan(t, dir, "explain", "ERR_VM_BOTO"); got.exit != 2 || !strings.Contains(got.stderr, "Hint: vmsan explain ERR_VM_BOOT") {
		t.Errorf("misspelt: %+v", got)
	}
	if got := vmsan(t, dir, "inspect", "nosuch", "--verbose"); !strings.Contains(got.stderr, "More: vmsan explain ERR_VM_NOT_FOUND") {
		t.Errorf("a verbose error: %+v", got)
	}
}

// What explain says to type are commands that there are, with flags that they
// have.
func TestRemedies(t *testing.T) {
	a := &app{stdout: &bytes.Buffer{}, stderr: &bytes.Buffer{}}
	root := a.rootCommand()
	for code := range api.Codes {
		e, _ := api.Explain(code)
		for _, remedy := range e.Remedies {
			line, _, _ := strings.Cut(strings.TrimPrefix(remedy, "sudo "), ", ")
			words := strings.Fields(line)
			if len(words) < 2 || words[0] != "vmsan" || words[1] == "COMMAND" || strings.HasPrefix(words[1], "--") {
				continue
			}
			cmd, rest, err := root.Find(words[1:])
			if err != nil || cmd == root {
				t.Errorf("%s: %q: there is no such command", code, remedy)
				continue
			}
			for _, word := range rest {
				name, ok := strings.CutPrefix(word, "--")
				if !ok {
					continue
				}
				if cmd.Flags().Lookup(name) == nil && cmd.InheritedFlags().Lookup(name) == nil && name != "help" {
					t.Errorf("%s: %q: there is no flag %s", code, remedy, word)
				}
			}
		}
	}
}
