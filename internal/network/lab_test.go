package network

import (
	"flag"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"github.com/vmsan/vmsan/internal/testenv"
)

// labVar is set in a process that was started in a lab: a network namespace
// of its own, empty and cut off from everything, in which it plays the host.
const labVar = "VMSAN_TEST_LAB"

// TestMain runs benchmarks in a lab as a whole.
func TestMain(m *testing.M) {
	flag.Parse()
	if flag.Lookup("test.bench").Value.String() != "" && os.Getenv(labVar) == "" {
		cmd := enterLab("benchmarks", os.Args[1:]...)
		cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
		if err := cmd.Run(); err != nil {
			os.Exit(1)
		}
		return
	}
	os.Exit(testenv.Main(m))
}

// enterLab is for the test binary itself, in a lab.
func enterLab(name string, args ...string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe", args...)
	cmd.Env = append(os.Environ(), labVar+"="+name)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	return cmd
}

// inLab runs f in a lab of its own, which takes another process: code under
// test starts threads, and threads do not inherit a namespace that a test has
// entered on its own.
func inLab(t *testing.T, f func(t *testing.T)) {
	t.Helper()
	testenv.RequireRoot(t)
	if os.Getenv(labVar) == t.Name() {
		f(t)
		checkTidy(t)
		return
	}
	cmd := enterLab(t.Name(), "-test.run=^"+regexp.QuoteMeta(t.Name())+"$", "-test.v", "-test.timeout=5m")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("in the lab: %v\n%s", err, out)
	}
	t.Logf("in the lab:\n%s", out)
}

// checkTidy fails t if it leaves something of a sandbox in the lab.
func checkTidy(t *testing.T) {
	t.Helper()
	left := func() string {
		return grep(run(t, "ip", "-br", "link"), `^vmsan`) + grep(run(t, "ip", "route"), `vmsan`) +
			grep(run(t, "nft", "list", "ruleset"), `vmsan[a-z0-9]{10}`)
	}
	await(t, "the lab is tidy", func() bool { return left() == "" }, left)
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
