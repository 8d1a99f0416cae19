package config

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/vmsan/vmsan/api"
)

func TestParse(t *testing.T) {
	f, err := Parse("f", []byte(`# all that there is
memory = "1g"
vcpus = 1_6
require-kvm = true
label = ["a=b", # one
  'c=d']
exec.timeout = "5s"

[snapshot.create]
"name" = """two
lines"""

[stop]
timeout = 30
run = { cold = false, env = [] }
`))
	if err != nil {
		t.Fatal(err)
	}
	want := []Setting{
		{"", "memory", String, []string{"1g"}, 2}, {"", "vcpus", Integer, []string{"16"}, 3},
		{"", "require-kvm", Boolean, []string{"true"}, 4}, {"", "label", List, []string{"a=b", "c=d"}, 5},
		{"exec", "timeout", String, []string{"5s"}, 7}, {"snapshot create", "name", String, []string{"two\nlines"}, 10},
		{"stop", "timeout", Integer, []string{"30"}, 14},
		{"stop run", "cold", Boolean, []string{"false"}, 15}, {"stop run", "env", List, nil, 15},
	}
	if diff := cmp.Diff(want, f.Settings); diff != "" {
		t.Errorf("settings (-want +got):\n%s", diff)
	}
}

func TestRefused(t *testing.T) {
	for text, want := range map[string]string{
		"a = 1\nb = 1.5":              "f:2: b is neither",
		"a = 1979-05-27":              "f:1: a is neither",
		"a = [1, 2]":                  "f:1: a is a list of other things than strings",
		"\n\na = ":                    "f:3: ",
		"a = 1\na = 2":                "f:2: ",
		"[a]\n[a]":                    "f:2: ",
		"[[a]]\nb = 1":                "f:1: a list of tables",
		"a = \"\xff\"":                "f:1: ",
		"a = [['b']]":                 "f:1: a is a list of other",
		"a = { b = { c = 1.0 } }":     "f:1: c is neither",
		"# comment\nno equals sign\n": "f:2: ",
	} {
		_, err := Parse("f", []byte(text))
		if !api.HasCode(err, api.ErrConfig) || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%q: %v, want %s", text, err, want)
		}
	}
}

func TestLoad(t *testing.T) {
	path := filepath.Join(t.TempDir(), "config.toml")
	if _, err := Load(path); !api.HasCode(err, api.ErrConfig) || !strings.Contains(err.Error(), path) {
		t.Errorf("no file: %v", err)
	}
	if err := os.WriteFile(path, []byte(strings.Repeat("#", maxFile+1)), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Load(path); err == nil || !strings.Contains(err.Error(), "larger") {
		t.Errorf("a large file: %v", err)
	}
	if f, err := Load("/dev/null"); err != nil || len(f.Settings) > 0 {
		t.Errorf("nothing: %v, %v", f, err)
	}
}

// A file is refused with its line, or each of its settings has a place and a
// value.
func FuzzParse(f *testing.F) {
	for _, text := range []string{"a = 1", "[a.b]\nc = 'd'", "a = ['b', \"c\"]", "a = {b = true}", "[[a]]", "a.b = 1", "\"\" = 1", "a = [ # c\n]"} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		file, err := Parse("f", data)
		if err != nil {
			if !strings.HasPrefix(err.Error(), "f:") {
				t.Errorf("without a line: %v", err)
			}
			return
		}
		for _, s := range file.Settings {
			if s.Line < 1 || s.Kind != List && len(s.Values) != 1 {
				t.Errorf("%+v", s)
			}
		}
	})
}
