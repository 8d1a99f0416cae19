package cli

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/cobra"

	"github.com/vmsan/vmsan/api"
	"github.com/vmsan/vmsan/internal/guest"
	"github.com/vmsan/vmsan/internal/store"
)

// result is what a run of the program shows.
type result struct {
	exit           int
	stdout, stderr string
}

// vmsan runs the program in this process, on the state directory dir.
func vmsan(t *testing.T, dir string, args ...string) result {
	t.Helper()
	t.Setenv("VMSAN_DIR", dir)
	if os.Getenv("VMSAN_CONFIG") == "" {
		t.Setenv("VMSAN_CONFIG", "/dev/null")
	}
	t.Setenv("XDG_RUNTIME_DIR", filepath.Dir(dir))
	var stdout, stderr bytes.Buffer
	a := &app{stdin: strings.NewReader(""), stdout: &stdout, stderr: &stderr}
	exit := a.run(t.Context(), args)
	return result{exit, stdout.String(), stderr.String()}
}

// stateDir is a state directory with stopped sandboxes of the given names.
func stateDir(t *testing.T, names ...string) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "state")
	l, err := store.NewLayout(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(l.Run) })
	if err := l.Init(); err != nil {
		t.Fatal(err)
	}
	for i, name := range names {
		r := &store.Record{
			ID: fmt.Sprintf("vm%010d", i), Name: name, Status: api.StatusStopped, Reason: "stopped", Slot: i,
			CreatedAt: time.Date(2026, 1, 2, 3, 4, i, 0, time.UTC),
			Labels:    map[string]string{"n": fmt.Sprint(i)},
			Spec: store.Spec{
				Image: "digest", ImageName: "debian", Kernel: "k", Driver: "qemu", Accelerator: "kvm",
				VCPUs: 1, MemoryMiB: 256, DiskBytes: 1 << 30, Network: "none",
			},
		}
		if err := os.Mkdir(l.Sandbox(r.ID), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := l.Save(r); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// Every command has a help text, an argument check, and is run by a script in
// e2e with and without --json.
func TestCommands(t *testing.T) {
	a := &app{stdout: &bytes.Buffer{}, stderr: &bytes.Buffer{}}
	for _, cmd := range a.rootCommand().Commands() {
		if cmd.Short == "" || strings.HasSuffix(cmd.Short, ".") || cmd.Args == nil || cmd.GroupID == "" {
			t.Errorf("%s: short %q, args checked %v, group %q", cmd.Name(), cmd.Short, cmd.Args != nil, cmd.GroupID)
		}
		checkScripted(t, cmd)
	}
}

// checkScripted checks that a script of e2e runs cmd, with and without --json.
func checkScripted(t *testing.T, cmd *cobra.Command) {
	t.Helper()
	scripts, err := filepath.Glob("../../e2e/testdata/*.txtar")
	if err != nil || len(scripts) == 0 {
		t.Fatalf("no scripts: %v", err)
	}
	var plain, asJSON bool
	for _, script := range scripts {
		text, err := os.ReadFile(script)
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(text)) {
			if strings.Contains(line, "vmsan "+cmd.Name()+" ") || strings.Contains(line, "vmsan --json "+cmd.Name()+" ") {
				asJSON = asJSON || strings.Contains(line, "--json")
				plain = plain || !strings.Contains(line, "--json")
			}
		}
	}
	if !plain || !asJSON {
		t.Errorf("e2e runs %s: %v; with --json: %v", cmd.Name(), plain, asJSON)
	}
}

// E2: the JSON of list, and of inspect of a single sandbox.
func TestListJSON(t *testing.T) {
	dir := stateDir(t, "a")
	const vm = `{
  "id": "vm0000000000",
  "name": "a",
  "labels": {
    "n": "0"
  },
  "status": "stopped",
  "reason": "stopped",
  "createdAt": "2026-01-02T03:04:00Z",
  "image": "debian",
  "imageDigest": "digest",
  "kernel": "k",
  "driver": "qemu",
  "accelerator": "kvm",
  "vcpus": 1,
  "memoryMiB": 256,
  "diskBytes": 1073741824,
  "network": "none"
}
`
	got := vmsan(t, dir, "inspect", "a")
	if diff := cmp.Diff(result{0, vm, ""}, got, cmp.AllowUnexported(result{})); diff != "" {
		t.Errorf("inspect (-want +got):\n%s", diff)
	}
	got = vmsan(t, dir, "list", "--json")
	var list []json.RawMessage
	if err := json.Unmarshal([]byte(got.stdout), &list); err != nil || len(list) != 1 {
		t.Errorf("list --json prints %v, %d: %s", err, len(list), got.stdout)
	}
}

func TestList(t *testing.T) {
	dir := stateDir(t, "a", "b", "")
	for _, test := range []struct {
		args []string
		want string
	}{
		{nil, "vm0000000000\nvm0000000001\nvm0000000002\n"},
		{[]string{"--name", "b"}, "vm0000000001\n"},
		{[]string{"--label", "n=2"}, "vm0000000002\n"},
		{[]string{"--label", "n=2", "--name", "a"}, ""},
		{[]string{"--status", "stopped", "--name", "a"}, "vm0000000000\n"},
		{[]string{"--status", "running"}, ""},
		{[]string{"--project", "x"}, ""},
	} {
		got := vmsan(t, dir, append([]string{"list", "-q"}, test.args...)...)
		if got != (result{0, test.want, ""}) {
			t.Errorf("list -q %v = %+v, want %q", test.args, got, test.want)
		}
	}
}

// Stopped sandboxes are stopped, renamed and removed without a machine.
func TestResultsJSON(t *testing.T) {
	dir := stateDir(t, "a", "b")
	for _, test := range []struct {
		args string
		want result
	}{
		{"stop --quiet a b", result{0, "vm0000000000\nvm0000000001\n", ""}},
		{"stop b a b", result{0, "vm0000000001\nvm0000000000\n", "stopped"}},
		{"wait a vm0000000000", result{0, "vm0000000000\n", ""}},
		{"rename a c", result{0, "", ""}},
		{"rename b c", result{4, "", "the name c is taken by vm0000000000"}},
		{"rm c nosuch", result{3, "", "VM not found: nosuch"}},
		{"rm c", result{0, "vm0000000000\n", ""}},
		{"logs b", result{0, "", ""}},
	} {
		got := vmsan(t, dir, strings.Fields(test.args)...)
		if got.exit != test.want.exit || got.stdout != test.want.stdout || !strings.Contains(got.stderr, test.want.stderr) {
			t.Errorf("%s: %+v, want %+v", test.args, got, test.want)
		}
	}
	got := vmsan(t, dir, "stop", "b", "--json")
	want := `{
  "results": [
    {
      "vm": "vm0000000001",
      "status": "stopped"
    }
  ]
}
`
	if got != (result{0, want, ""}) {
		t.Errorf("stop --json = %+v", got)
	}
}

// What happens to several sandboxes is told of each, and the exit code is that
// of the first failure.
func TestPartialFailure(t *testing.T) {
	results := []api.Result{{VM: "vm1"}, {VM: "vm2"}, {VM: "vm3"}}
	errs := []error{nil, api.Errorf(api.ErrVMBusy, "busy").WithHint("try again"), api.Errorf(api.ErrTimeout, "late")}
	var stdout, stderr bytes.Buffer
	a := &app{stdout: &stdout, stderr: &stderr}
	if exit := a.finish(a.printResults(results, errs), false); exit != int(api.KindConflict) {
		t.Errorf("the exit code is %d", exit)
	}
	if stdout.String() != "vm1\n" || stderr.String() != "vmsan: busy\nHint: try again\nvmsan: late\n" {
		t.Errorf("prints %q and %q", &stdout, &stderr)
	}
	stdout.Reset()
	a.json = true
	a.printResults(results, errs)
	var got api.Results
	if err := json.Unmarshal(stdout.Bytes(), &got); err != nil {
		t.Fatal(err)
	}
	if len(got.Results) != 3 || got.Results[0].Error != nil || got.Results[1].Error.Code != api.ErrVMBusy ||
		got.Results[2].Error.Code != api.ErrTimeout {
		t.Errorf("prints %s", &stdout)
	}
}

// A wrong command exits with 2, or 125 if its exit codes are the guest's, and
// its error is one JSON document if that was asked for anywhere.
func TestUsageErrors(t *testing.T) {
	dir := stateDir(t)
	for _, test := range []struct {
		args string
		exit int
		json bool
	}{
		{"bogus", 2, false}, {"bogus --json", 2, true}, {"--json list extra", 2, true},
		{"list --bogus --json", 2, true}, {"list --json=true --bogus", 2, true}, {"list --bogus -- --json", 2, false},
		{"create --vcpus x", 2, false}, {"stop", 2, false},
		{"exec", 125, false}, {"exec vm --json", 125, false}, {"--json exec --bogus", 125, true},
		{"run --bogus", 125, false}, {"attach a", 125, false},
	} {
		got := vmsan(t, dir, strings.Fields(test.args)...)
		isJSON := json.Valid([]byte(got.stdout)) && strings.Contains(got.stdout, `"code"`)
		if got.exit != test.exit || isJSON != test.json || (got.stderr == "") != test.json {
			t.Errorf("%s: %+v, want exit code %d, JSON %v", test.args, got, test.exit, test.json)
		}
	}
}

func TestExitCodes(t *testing.T) {
	for _, test := range []struct {
		err      error
		executes bool
		want     int
	}{
		{nil, false, 0},
		{guestExit{guest.Exit{Code: 42}}, true, 42},
		{guestExit{guest.Exit{Code: -1, Signal: 9}}, true, 137},
		{guestExit{guest.Exit{Code: -1, Signal: 9, TimedOut: true}}, true, 124},
		{fmt.Errorf("stop: %w", api.Errorf(api.ErrVMNotFound, "x")), false, 3},
		{api.Errorf(api.ErrVMNotFound, "x"), true, 125},
		{api.Errorf(api.ErrExecNotFound, "x"), true, 127},
		{api.Errorf(api.ErrExecNotExecutable, "x"), true, 126},
		{fmt.Errorf("plain"), false, 1},
		{exitStatus(api.KindSetup), false, 6},
		{t.Context().Err(), false, 0},
	} {
		a := &app{stdout: &bytes.Buffer{}, stderr: &bytes.Buffer{}}
		if got := a.finish(test.err, test.executes); got != test.want {
			t.Errorf("%v exits with %d, want %d", test.err, got, test.want)
		}
	}
}

func TestSplitImage(t *testing.T) {
	for _, test := range []struct {
		args    []string
		dash    int
		image   string
		command string
	}{
		{[]string{"uname", "-a"}, 0, "", "uname -a"},
		{[]string{"debian", "uname"}, -1, "debian", "uname"},
		{[]string{"debian", "uname"}, 1, "debian", "uname"},
		{[]string{"debian", "--", "uname", "--"}, -1, "debian", "uname --"},
		{[]string{"debian"}, -1, "debian", ""},
		{[]string{"debian", "--"}, -1, "debian", ""},
	} {
		var f createFlags
		command, err := splitImage(&f, test.args, test.dash)
		if err != nil || f.options.Image != test.image || strings.Join(command, " ") != test.command {
			t.Errorf("%v, %d: image %q, command %q, %v", test.args, test.dash, f.options.Image, command, err)
		}
	}
	if _, err := splitImage(&createFlags{}, nil, -1); !api.HasCode(err, api.ErrUsage) {
		t.Errorf("nothing: %v", err)
	}
	if _, err := splitImage(&createFlags{}, []string{"a", "b", "c"}, 2); !api.HasCode(err, api.ErrUsage) {
		t.Errorf("two images: %v", err)
	}
}

func TestParseSignal(t *testing.T) {
	for text, want := range map[string]int{"KILL": 9, "SIGTERM": 15, "term": 15, "1": 1, "64": 64} {
		if got, err := parseSignal(text); got != want || err != nil {
			t.Errorf("parseSignal(%q) = %d, %v", text, got, err)
		}
	}
	for _, text := range []string{"", "0", "65", "-9", "BOGUS", "SIGSIGKILL"} {
		if got, err := parseSignal(text); !api.HasCode(err, api.ErrValidationChoice) {
			t.Errorf("parseSignal(%q) = %d, %v", text, got, err)
		}
	}
}

func TestCompletion(t *testing.T) {
	dir := stateDir(t, "a", "")
	for args, want := range map[string]string{
		"__complete stop":           "a\tstopped\nvm0000000000\tstopped\nvm0000000001\tstopped\n:4\n",
		"__complete inspect a":      "vm0000000000\tstopped\nvm0000000001\tstopped\n:4\n",
		"__complete exec a":         ":0\n",
		"__complete create --accel": "auto\nkvm\ntcg\n:4\n",
		"__complete completion":     "bash\nzsh\nfish\npowershell\n:4\n",
	} {
		got := vmsan(t, dir, append(strings.Fields(args), "")...)
		if got.stdout != want {
			t.Errorf("%s: %q, want %q", args, got.stdout, want)
		}
	}
}

// Whatever names something that there is can be completed, and looking makes
// nothing.
func TestCompletesNames(t *testing.T) {
	dir := stateDir(t, "web")
	names := `{"format": 1, "names": {"debian": "d1", "alpine": "d2"}}`
	if err := os.WriteFile(filepath.Join(dir, "images.json"), []byte(names), 0o600); err != nil {
		t.Fatal(err)
	}
	a := &app{stdout: &bytes.Buffer{}, stderr: &bytes.Buffer{}}
	var look func(cmd *cobra.Command)
	look = func(cmd *cobra.Command) {
		_, arguments, _ := strings.Cut(cmd.Use, " ")
		for _, noun := range []string{"VM", "IMAGE", "SNAPSHOT", "VOLUME", "TEMPLATE", "SOURCE", "CODE"} {
			if strings.Contains(arguments, noun) && cmd.ValidArgsFunction == nil {
				t.Errorf("%s does not complete %s", cmd.CommandPath(), noun)
			}
		}
		for _, sub := range cmd.Commands() {
			look(sub)
		}
	}
	look(a.rootCommand())
	for args, want := range map[string]string{
		"image rm debian": "alpine\n:4\n",
		"image inspect":   "alpine\ndebian\n:4\n",
		"cp":              "web:\tstopped\nvm0000000000:\tstopped\n:2\n",
		"create --volume": "",
		"explain":         "ERR_",
		"volume inspect":  "",
		"template rm":     ":4\n",
	} {
		got := vmsan(t, dir, append(append([]string{"__complete"}, strings.Fields(args)...), "")...)
		if !strings.HasPrefix(got.stdout, want) {
			t.Errorf("%s: %q, want %q", args, got.stdout, want)
		}
	}
	if got := vmsan(t, dir, "__complete", "cp", "x", "we"); got.stdout != "web:\tstopped\n:2\n" {
		t.Errorf("cp x we: %q", got.stdout)
	}
	absent := filepath.Join(t.TempDir(), "none")
	for _, args := range []string{"stop", "snapshot rm", "template rm", "volume rm", "image rm", "cp", "create --snapshot", "create --volume"} {
		vmsan(t, absent, append(append([]string{"__complete"}, strings.Fields(args)...), "")...)
	}
	if _, err := os.Stat(absent); err == nil {
		t.Error("completing made the state directory")
	}
}

// Nothing that a guest or a user chose moves the cursor of a terminal.
func TestPrintable(t *testing.T) {
	if got := printable("a\x1b[2Jb\nc\u202e"); got != "a?[2Jb?c?" {
		t.Errorf("got %q", got)
	}
}
