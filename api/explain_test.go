package api

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
)

// E1: every code has causes, and something to do about it.
func TestExplanations(t *testing.T) {
	for name, code := range codesInSource(t) {
		e, known := Explain(code)
		if !known || e.ExitCode == 0 || e.Meaning == "" || len(e.Causes) == 0 || len(e.Remedies) == 0 {
			t.Errorf("%s is explained by %+v", name, e)
		}
		for _, text := range slices.Concat(e.Causes, e.Remedies) {
			if text != strings.TrimSpace(text) || text == "" || strings.HasSuffix(text, ".") || strings.ContainsAny(text, "\n") {
				t.Errorf("%s says %q", name, text)
			}
		}
	}
	for code := range explanations {
		if _, ok := Codes[code]; !ok {
			t.Errorf("%s is explained, and is no code", code)
		}
	}
	if e, known := Explain("ERR_NO_SUCH"); known {
		t.Errorf("a code that is none is explained by %+v", e)
	}
}

// TestErrorsPage keeps docs/errors.md what explain says; go test ./api -update
// writes it.
func TestErrorsPage(t *testing.T) {
	checkPage(t, "../docs/errors.md", errorsPage())
}

func errorsPage() string {
	var page strings.Builder
	page.WriteString(`# Errors

Written from api/explain.go by ` + "`make docs`. `vmsan explain CODE`" + ` says the same. With --json an error carries its code;
with --verbose it is printed, too. The exit codes here are those of most commands: ` + "`run`, `exec`, `connect` and `attach`" + ` exit with
127 for ERR_EXEC_NOT_FOUND, 126 for ERR_EXEC_NOT_EXECUTABLE and 125 for all others.
`)
	for _, code := range slices.Sorted(maps.Keys(Codes)) {
		e, _ := Explain(code)
		fmt.Fprintf(&page, "\n## %s\n\nExit code %d: %s.\n\nUsual causes:\n\n", code, e.ExitCode, e.Meaning)
		for _, cause := range e.Causes {
			fmt.Fprintf(&page, "- %s\n", cause)
		}
		page.WriteString("\nWhat to do:\n\n")
		for _, remedy := range e.Remedies {
			fmt.Fprintf(&page, "- %s\n", asCode(remedy))
		}
	}
	return page.String()
}

// asCode sets a remedy that begins with a command in type.
func asCode(remedy string) string {
	command, rest, _ := strings.Cut(remedy, ", ")
	for _, program := range []string{"vmsan ", "sudo ", "apt-get ", "ip ", "ls ", "curl ", "docker ", "ss ", "usermod ", "ps ", "file "} {
		if strings.HasPrefix(command, program) && !strings.HasPrefix(command, "ls -ld of") {
			if rest != "" {
				rest = ", " + rest
			}
			return "`" + command + "`" + rest
		}
	}
	return remedy
}
