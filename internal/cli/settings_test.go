package cli

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/vmsan/vmsan/api"
)

// configFile writes a config file and returns its path.
func configFile(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "config.toml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// applied returns the values of some flags of a command with arguments, once
// the settings are applied.
func applied(t *testing.T, file string, args []string, flags ...string) map[string]string {
	t.Helper()
	a := &app{stdout: &bytes.Buffer{}, stderr: &bytes.Buffer{}}
	root := a.rootCommand()
	a.config = file
	cmd, rest, err := root.Find(args)
	if err == nil {
		err = cmd.ParseFlags(rest)
	}
	if err == nil {
		err = a.applySettings(cmd)
	}
	if err != nil {
		t.Fatal(err)
	}
	values := map[string]string{}
	for _, name := range flags {
		flag := cmd.Flag(name)
		values[name] = a.valueOf(flag)
		if flag.Changed != strings.Contains(strings.Join(args, " "), "--"+name) {
			t.Errorf("%v: --%s counts as typed: %v", args, name, flag.Changed)
		}
	}
	return values
}

// Flags come before variables, those before the command's table, and that
// before what is in none.
func TestSettingsOrder(t *testing.T) {
	file := configFile(t, `
memory = "1g"
vcpus = 2
disk = "5g"
label = ["a=b", "c=d,e"]
env = "A=1"
boot-timeout = "3m"
require-kvm = true
publish = ["8080:80"]
[create]
disk = "6g"
restart = "always"
[run]
memory = "2g"
[exec]
timeout = 30
env = []
[snapshot.create]
name = "nightly"
`)
	t.Setenv("VMSAN_VCPUS", "3")
	t.Setenv("VMSAN_PUBLISH", "1:1,2:2")
	t.Setenv("VMSAN_TIMEOUT", "99")
	for args, want := range map[string]map[string]string{
		"create": {
			"memory": "1g", "vcpus": "3", "disk": "6g", "label": "a=b,c=d,e", "env": "A=1", "boot-timeout": "3m",
			"require-kvm": "true", "restart": "always", "publish": "1:1,2:2",
		},
		"create --memory 128 --vcpus 4":   {"memory": "128", "vcpus": "4", "disk": "6g"},
		"create --label x=y --env B=2":    {"label": "x=y", "env": "B=2"},
		"run":                             {"memory": "2g", "vcpus": "3", "disk": "5g", "timeout": "", "env": "A=1"},
		"exec":                            {"timeout": "30", "env": ""},
		"stop":                            {"timeout": "10s"},
		"snapshot create":                 {"name": "nightly"},
		"create --snapshot s":             {"memory": "256m", "vcpus": "1", "label": "", "snapshot": "s", "restart": "always"},
		"create --boot-timeout 1m --json": {"boot-timeout": "1m", "json": "true"},
	} {
		var flags []string
		for name := range want {
			flags = append(flags, name)
		}
		if diff := cmp.Diff(want, applied(t, file, strings.Fields(args), flags...)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", args, diff)
		}
	}
}

// What is typed takes the place of settings that it does not go with.
func TestSettingsGiveWay(t *testing.T) {
	file := configFile(t, "image = \"debian\"\nnetwork-policy = \"deny-all\"\ndns = [\"192.0.2.1\"]\nverbose = true\n")
	for args, want := range map[string]map[string]string{
		"create":                            {"image": "debian", "network-policy": "deny-all", "dns": "192.0.2.1", "verbose": "true"},
		"create --runtime node22":           {"image": "", "runtime": "node22"},
		"create --allowed-domain x.org":     {"network-policy": "", "dns": "192.0.2.1"},
		"create --network none":             {"network-policy": "", "dns": ""},
		"create --network nat --quiet":      {"network-policy": "deny-all", "verbose": "false"},
		"create --network-policy allow-all": {"network-policy": "allow-all"},
	} {
		var flags []string
		for name := range want {
			flags = append(flags, name)
		}
		if diff := cmp.Diff(want, applied(t, file, strings.Fields(args), flags...)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", args, diff)
		}
	}
	t.Setenv("VMSAN_RUNTIME", "node24")
	want := map[string]string{"image": "", "runtime": "node24"}
	if diff := cmp.Diff(want, applied(t, file, []string{"create"}, "image", "runtime")); diff != "" {
		t.Errorf("a variable over the file (-want +got):\n%s", diff)
	}
}

// An image that was only set gives way to the one in front of the command.
func TestSetImage(t *testing.T) {
	f := createFlags{runtime: "node22"}
	f.options.Image = "debian"
	if command, err := splitImage(&f, []string{"alpine", "true"}, -1); err != nil || f.options.Image != "alpine" || f.runtime != "" || len(command) != 1 {
		t.Errorf("%+v, %v, %v", f.options.Image, command, err)
	}
	f = createFlags{imageTyped: true}
	f.options.Image = "debian"
	if _, err := splitImage(&f, []string{"alpine", "true"}, -1); !api.HasCode(err, api.ErrValidationFlags) {
		t.Errorf("two that were typed: %v", err)
	}
}

// What cannot be used is refused with its line, whichever command is called.
func TestSettingsRefused(t *testing.T) {
	dir := stateDir(t)
	for text, want := range map[string][2]string{
		"\nmemroy = \"1g\"":                 {":2: there is no setting \"memroy\"", "did you mean memory?"},
		"timeout = \"1g\"":                  {":1: there is no setting \"timeout\"", ""},
		"no-netns = true":                   {":1: there is no setting \"no-netns\"", ""},
		"config = \"x\"":                    {":1: there is no setting \"config\"", ""},
		"vcpus = true":                      {":1: vcpus is a boolean, and should be a string", "vmsan create --help"},
		"require-kvm = \"yes\"":             {":1: require-kvm is a string, and should be a boolean", ""},
		"label = 3":                         {":1: label is an integer, and should be a list of strings", ""},
		"[craete]\nmemory = \"1g\"":         {":2: there is no command \"craete\"", "did you mean create?"},
		"[rm]\nforce = true":                {":2: there is no command \"rm\"", ""},
		"[stop]\ntimeuot = 3":               {":2: there is no setting \"timeuot\"", "did you mean timeout?"},
		"[snapshot]\ncreate = {name = 1.5}": {":2: name is neither", ""},
		"memory = ":                         {":1: ", ""},
	} {
		file := configFile(t, text)
		got := vmsan(t, dir, "list", "--config", file)
		if got.exit != 2 || !strings.Contains(got.stderr, "vmsan: "+file+want[0]) || !strings.Contains(got.stderr, want[1]) {
			t.Errorf("%q: %+v", text, got)
		}
	}
	if got := vmsan(t, dir, "list", "--config", "/nonexistent/f"); got.exit != 2 || !strings.Contains(got.stderr, "/nonexistent/f") {
		t.Errorf("no file: %+v", got)
	}
	if got := vmsan(t, dir, "list", "--config", ""); got.exit != 2 {
		t.Errorf("an empty name: %+v", got)
	}
	// A value that only the command can judge is traced back.
	for _, flag := range []string{"memory", "disk", "disk-rate", "disk-iops", "bandwidth"} {
		file := configFile(t, "# here\n"+flag+" = \"lots\"")
		got := vmsan(t, dir, "create", "--no-setup", "--config", file)
		if got.exit != 2 || !strings.Contains(got.stderr, "Invalid --"+flag) || !strings.Contains(got.stderr, "(It is from "+file+":2.)") {
			t.Errorf("a bad value: %+v", got)
		}
	}
	t.Setenv("VMSAN_REQUIRE_KVM", "maybe")
	if got := vmsan(t, dir, "create", "--no-setup"); got.exit != 2 || !strings.Contains(got.stderr, "$VMSAN_REQUIRE_KVM: Invalid require-kvm: \"maybe\"") {
		t.Errorf("a bad variable: %+v", got)
	}
}

func TestConfigCommand(t *testing.T) {
	dir := stateDir(t)
	file := configFile(t, "memory = \"1g\"\n[exec]\ntimeout = 30\n")
	t.Setenv("VMSAN_VCPUS", "3")
	got := vmsan(t, dir, "config", "--json", "--config", file)
	var shown api.Settings
	if err := json.Unmarshal([]byte(got.stdout), &shown); err != nil {
		t.Fatalf("%v: %+v", err, got)
	}
	found := map[string]api.Setting{}
	for _, s := range shown.Settings {
		found[s.Command+"/"+s.Key] = s
	}
	for key, want := range map[string]api.Setting{
		"/memory": {Key: "memory", Value: "1g", From: file + ":1"}, "/vcpus": {Key: "vcpus", Value: "3", From: "$VMSAN_VCPUS"},
		"/disk": {Key: "disk", Value: "10g", From: "default"}, "/json": {Key: "json", Value: "true", From: "--json"},
		"/dir": {Key: "dir", Value: dir, From: "$VMSAN_DIR"}, "exec/timeout": {Command: "exec", Key: "timeout", Value: "30", From: file + ":3"},
	} {
		if found[key] != want {
			t.Errorf("%s is %+v, want %+v", key, found[key], want)
		}
	}
	if shown.File != file {
		t.Errorf("the file is %s", shown.File)
	}
	if _, ok := found["/config"]; ok {
		t.Error("the file names itself")
	}
	if got := vmsan(t, dir, "config", "--config", file); !strings.Contains(got.stdout, "exec: timeout") || !strings.HasPrefix(got.stdout, "KEY ") {
		t.Errorf("for people: %+v", got)
	}
}

func TestNearest(t *testing.T) {
	for typed, want := range map[string]string{"memroy": "memory", "mem": "", "netwrk": "network", "": "", "dissk": "disk"} {
		if got := nearest(typed, []string{"memory", "network", "disk", "dns"}); got != want {
			t.Errorf("nearest to %q is %q, want %q", typed, got, want)
		}
	}
}
