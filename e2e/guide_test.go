package e2e

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestGuide types what docs/guide.md shows, and compares what is said. Every
// command is in it.
func TestGuide(t *testing.T) {
	text, err := os.ReadFile("../docs/guide.md")
	if err != nil {
		t.Fatal(err)
	}
	h := newHost(t)
	dir := t.TempDir()
	for _, c := range h.commands() {
		if !strings.Contains(string(text), "vmsan "+c) {
			t.Errorf("vmsan %s is not in the guide", c)
		}
	}
	for _, line := range sessions(string(text)) {
		if got := h.shell(dir, line.typed); !line.like(got) {
			t.Errorf("%s\nsays:\n%s\nand not:\n%s", line.typed, got, strings.Join(line.said, "\n"))
		}
	}
}

// commands are those that help lists.
func (h *host) commands() (names []string) {
	h.t.Helper()
	listed := regexp.MustCompile(`(?m)^  ([a-z][a-z-]*) {2,}[A-Z]`)
	for _, m := range listed.FindAllStringSubmatch(h.must("--help"), -1) {
		if m[1] != "help" {
			names = append(names, m[1])
		}
	}
	if len(names) < 30 || !slices.Contains(names, "run") {
		h.t.Fatalf("help lists the commands %v", names)
	}
	return names
}

// shell runs a line as a user would, and returns what it says.
func (h *host) shell(dir, line string) string {
	h.t.Helper()
	ctx, cancel := context.WithTimeout(h.t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "bash", "-c", line)
	cmd.Dir, cmd.WaitDelay = dir, 10*time.Second
	cmd.Env = append(os.Environ(), "VMSAN_DIR="+h.layout.Dir, "HOME="+dir, "PATH="+filepath.Dir(h.binary)+":"+os.Getenv("PATH"))
	out, err := cmd.CombinedOutput()
	if err != nil {
		h.t.Errorf("%s: %v", line, err)
	}
	return strings.TrimRight(string(out), "\n")
}

// session is a line that is typed, and the lines that come of it.
type session struct {
	typed string
	said  []string
}

// sessions are those of a page: what is in its blocks of console.
func sessions(page string) (list []session) {
	_, blocks, _ := strings.Cut(page, "```console\n")
	for _, block := range strings.Split(blocks, "```console\n") {
		block, _, _ = strings.Cut(block, "```")
		for line := range strings.Lines(block) {
			line = strings.TrimSuffix(line, "\n")
			if typed, ok := strings.CutPrefix(line, "$ "); ok {
				list = append(list, session{typed: typed})
			} else {
				last := &list[len(list)-1]
				last.said = append(last.said, line)
			}
		}
	}
	return list
}

// like tells whether got is what was said before. A line that is … is any
// number of lines; within one it is anything.
func (s session) like(got string) bool {
	var pattern strings.Builder
	pattern.WriteString(`\A`)
	for _, line := range s.said {
		if line == "…" {
			pattern.WriteString(`(?s:.*)\n?`)
			continue
		}
		for i, part := range strings.Split(line, "…") {
			if i > 0 {
				pattern.WriteString(`[^\n]*`)
			}
			pattern.WriteString(regexp.QuoteMeta(part))
		}
		pattern.WriteString(`\n?`)
	}
	pattern.WriteString(`\z`)
	return regexp.MustCompile(pattern.String()).MatchString(got)
}
