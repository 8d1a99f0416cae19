package network

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"

	"github.com/vmsan/vmsan/internal/testenv"
	"github.com/vmsan/vmsan/internal/testenv/lab"
)

func TestMain(m *testing.M) {
	switch os.Getenv(childVar) {
	case "check":
		err := CheckHost(context.Background())
		var host *HostError
		if errors.As(err, &host) {
			fmt.Println(err, "hint:", host.Hint)
		}
	case "create":
		_, err := Create(context.Background(), abandoned)
		fmt.Println("made", err)
		select {}
	default:
		os.Exit(testenv.Main(m))
	}
}

// inLab is for tests that make networks on the lab's host, which they have to
// leave as it was.
func inLab(t testing.TB) *lab.Lab {
	t.Helper()
	testenv.RequireRoot(t)
	t.Cleanup(func() { checkTidy(t) })
	return testenv.Lab(t)
}

// checkTidy fails t if it leaves something of a sandbox on the host, which
// the kernel may take a moment to remove.
func checkTidy(t testing.TB) {
	t.Helper()
	await(t, "the lab is tidy", func() bool { return leftOnHost(t) == "" }, func() string { return leftOnHost(t) })
}

// leftOnHost is what is on the host of sandboxes.
func leftOnHost(t testing.TB) string {
	t.Helper()
	return grep(run(t, "ip", "-br", "link"), `^vmsan`) + grep(run(t, "ip", "route"), `vmsan`) +
		grep(run(t, "nft", "list", "ruleset"), `vmsan[a-z0-9]{10}`)
}

// run runs a command, which must succeed, and returns its output.
func run(t testing.TB, args ...string) string {
	t.Helper()
	out, err := exec.Command(args[0], args[1:]...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v: %s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// grep returns the lines that match.
func grep(text, pattern string) string {
	var found strings.Builder
	for line := range strings.Lines(text) {
		if regexp.MustCompile(pattern).MatchString(line) {
			found.WriteString(line)
		}
	}
	return found.String()
}
