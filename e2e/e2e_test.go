// Package e2e drives the built binary on real machines: scripts in testdata
// for what one sandbox does, tests in Go for what many do at once. The names
// of acceptance cases (A1, L5, N8 ...) are in the scripts' comments.
package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/vmsan/vmsan/internal/store"
	"github.com/vmsan/vmsan/internal/testenv"
)

func TestMain(m *testing.M) { os.Exit(testenv.Main(m)) }

func TestScripts(t *testing.T) {
	scripts, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(scripts) == 0 {
		t.Fatalf("no scripts: %v", err)
	}
	examples, err := filepath.Abs("../examples")
	if err != nil {
		t.Fatal(err)
	}
	for _, script := range scripts {
		t.Run(strings.TrimSuffix(filepath.Base(script), ".txtar"), func(t *testing.T) {
			t.Parallel()
			h, fresh := newHost(t), freshState(t)
			testscript.Run(t, testscript.Params{
				Files: []string{script},
				Setup: func(env *testscript.Env) error {
					env.Setenv("PATH", filepath.Dir(h.binary)+":"+os.Getenv("PATH"))
					env.Setenv("VMSAN_DIR", h.layout.Dir)
					env.Setenv("VMSAN_CONFIG", "/dev/null")
					env.Setenv("VMSAN_RUN", h.layout.Run)
					env.Setenv("FRESH", fresh)
					env.Setenv("EXAMPLES", examples)
					env.Setenv("VMSAN_TEMPLATES", os.Getenv("VMSAN_TEMPLATES"))
					env.Setenv("NL", "\n") // scripts are read by the line
					// Where vmsan keeps what it makes, if ever it looks there.
					env.Setenv("HOME", env.WorkDir)
					return nil
				},
				Cmds: map[string]func(*testscript.TestScript, bool, []string){
					"exits":      exits,
					"json":       checkJSON,
					"jsonenv":    jsonEnv,
					"eventually": eventually,
					"untouched":  h.untouched,
				},
				Condition:          h.condition,
				RequireUniqueNames: true,
			})
		})
	}
}

// freshState names a state directory that is not there yet.
func freshState(t *testing.T) string {
	t.Helper()
	layout, err := store.NewLayout(filepath.Join(t.TempDir(), "state"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(layout.Run) })
	return layout.Dir
}

func binary(t testing.TB) string {
	t.Helper()
	path, err := testenv.Binary()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// build builds a program of the project, and returns its path.
func build(t testing.TB, program string, flags ...string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), filepath.Base(program))
	cmd := exec.Command("go", append(append([]string{"build", "-ldflags", "-s -w", "-o", path}, flags...), program)...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build %s: %v: %s", program, err, out)
	}
	return path
}

// readBuilt is the program that build builds.
func readBuilt(t testing.TB, program string) []byte {
	t.Helper()
	text, err := os.ReadFile(build(t, program))
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// newHost is a state directory of the test's own, which is checked for
// anything left behind when the test has ended.
func newHost(t testing.TB) *host {
	t.Helper()
	testenv.RequireRoot(t)
	h := &host{t: t, layout: testenv.RequireVM(t), binary: binary(t), ids: map[string]bool{}}
	h.watch()
	return h
}
