package outfile

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/vmsan/vmsan/api"
)

// write writes a whole file.
func write(path, text string) error {
	file, err := Create(path, 0o600)
	if err != nil {
		return err
	}
	defer file.Cleanup()
	if _, err := file.WriteString(text); err != nil {
		return err
	}
	return file.Commit()
}

func TestCreate(t *testing.T) {
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	for _, err := range []error{
		os.WriteFile(at("there"), []byte("before"), 0o644), os.Symlink("there", at("link")), os.Symlink("nothing", at("dangling")),
		syscall.Mkfifo(at("pipe"), 0o600), os.Mkdir(at("directory"), 0o755),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(write(at("new"), "new"), write(at("link"), "after")); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"new": "new", "there": "after"} {
		if got, err := os.ReadFile(at(name)); err != nil || string(got) != want {
			t.Errorf("%s is %q, %v", name, got, err)
		}
	}
	if info, err := os.Lstat(at("link")); err != nil || info.Mode()&os.ModeSymlink == 0 {
		t.Errorf("the link is %v, %v", info, err)
	}
	for name, says := range map[string]string{"directory": "it is a directory", "dangling": "leads nowhere", "not/there": "no such file or directory", "there/x": "not a directory"} {
		if err := write(at(name), "x"); !api.HasCode(err, api.ErrValidationPath) || !strings.Contains(err.Error(), says) || strings.Contains(err.Error(), ".x") {
			t.Errorf("%s: %v", name, err)
		}
	}

	given, err := Create(at("there"), 0o600)
	if err != nil {
		t.Fatal(err)
	}
	given.WriteString("half")
	given.Cleanup()
	if got, err := os.ReadFile(at("there")); err != nil || string(got) != "after" {
		t.Errorf("after what was given up there is %q, %v", got, err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 6 {
		t.Errorf("there are %v, %v", entries, err)
	}
}

// TestCreateOutput is of standard output by a name, with a file behind it.
func TestCreateOutput(t *testing.T) {
	path := filepath.Join(t.TempDir(), "out")
	out, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	stdout := os.Stdout
	os.Stdout = out
	defer func() { os.Stdout = stdout }()
	out.WriteString("head ")
	if err := write(path, "text "); err != nil {
		t.Fatal(err)
	}
	out.WriteString("tail")
	if got, err := os.ReadFile(path); err != nil || string(got) != "head text tail" {
		t.Errorf("there is %q, %v", got, err)
	}
}

// TestCreateSpecial is of what is no file, as a pipe is here, and /dev/null
// elsewhere, which root could replace.
func TestCreateSpecial(t *testing.T) {
	pipe := filepath.Join(t.TempDir(), "pipe")
	if err := syscall.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	read := make(chan string)
	go func() {
		text, _ := os.ReadFile(pipe)
		read <- string(text)
	}()
	if err := write(pipe, "through"); err != nil {
		t.Fatal(err)
	}
	if got := <-read; got != "through" {
		t.Errorf("got %q", got)
	}
	if info, err := os.Lstat(pipe); err != nil || info.Mode()&os.ModeNamedPipe == 0 {
		t.Errorf("the pipe is %v, %v", info, err)
	}
}
