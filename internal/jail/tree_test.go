package jail

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vmsan/vmsan/internal/testenv"
)

func TestTree(t *testing.T) {
	testenv.RequireRoot(t)
	dir := t.TempDir()
	mount := filepath.Join(dir, "tree")
	if err := os.Mkdir(mount, 0o700); err != nil {
		t.Fatal(err)
	}
	own, shared := filepath.Join(dir, "own"), filepath.Join(dir, "shared")
	for _, path := range []string{own, shared} {
		if err := os.WriteFile(path, []byte("before\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	script := fmt.Sprintf(`cd %s; cat a/shared; echo after > a/shared; echo after > own; read x`, mount)
	read, write, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	out, theirs, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	p, err := Start(Spec{
		Path: "/bin/sh", Args: []string{"-c", script}, Stdin: read, Stdout: theirs, Stderr: theirs, Namespaces: unix.CLONE_NEWPID,
		Tree: &Tree{Mount: mount, Files: []TreeFile{
			{File: openFile(t, shared), Path: "a/shared"},
			{File: openFile(t, own), Path: "own", Writable: true},
		}},
	})
	read.Close()
	theirs.Close()
	if err != nil {
		t.Fatal(err)
	}
	if left, _ := filepath.Glob(mount + "/*"); len(left) > 0 {
		t.Errorf("the host sees %v", left)
	}
	write.Close()
	said, _ := io.ReadAll(out)
	<-p.Done()
	if got := string(said); !strings.Contains(got, "before\n") || !strings.Contains(got, "Read-only file system") {
		t.Errorf("the child said %q", got)
	}
	for path, want := range map[string]string{own: "after\n", shared: "before\n"} {
		if got, _ := os.ReadFile(path); string(got) != want {
			t.Errorf("%s holds %q, want %q", path, got, want)
		}
	}
}

// TestLend lends a file to a process that runs, and takes it back.
func TestLend(t *testing.T) {
	testenv.RequireRoot(t)
	dir := t.TempDir()
	path := filepath.Join(dir, "lent")
	if err := os.WriteFile(path, nil, 0o666); err != nil {
		t.Fatal(err)
	}
	at := filepath.Join(t.TempDir(), "here")
	spec := jailed(t, fmt.Sprintf("read x; echo lent > %[1]s; echo done; read x; ls %[1]s", at))
	// A root that can be written, as a jailer leaves it.
	spec.Root, spec.User = nil, nil
	spec.Tree = &Tree{Mount: t.TempDir()}
	in, tell, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer tell.Close()
	out, theirs, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	spec.Stdin, spec.Stdout, spec.Stderr = in, theirs, theirs
	p, err := Start(spec)
	in.Close()
	theirs.Close()
	if err != nil {
		t.Fatal(err)
	}
	namespace, err := os.Open(fmt.Sprintf("/proc/%d/ns/mnt", p.PID()))
	if err != nil {
		t.Fatal(err)
	}
	defer namespace.Close()
	file := openFile(t, path)
	if err := Lend(namespace, file, at); err != nil {
		t.Fatal(err)
	}
	io.WriteString(tell, "\n")
	if _, err := io.ReadFull(out, make([]byte, len("done\n"))); err != nil {
		t.Fatal(err)
	}
	if err := TakeBack(namespace, at); err != nil {
		t.Fatal(err)
	}
	io.WriteString(tell, "\n")
	said, _ := io.ReadAll(out)
	<-p.Done()
	if !strings.Contains(string(said), "No such file") {
		t.Errorf("after it was taken back: %q", said)
	}
	if got, _ := os.ReadFile(path); string(got) != "lent\n" {
		t.Errorf("the file holds %q", got)
	}
}

func openFile(t *testing.T, path string) *os.File {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// Children start while the caller opens and closes other files: the number of
// the first process's program is nobody else's.
func TestTreeBesideOtherFiles(t *testing.T) {
	testenv.RequireRoot(t)
	ended := make(chan struct{})
	var others sync.WaitGroup
	for range 2 {
		others.Go(func() {
			for n := 0; ; n++ {
				var files []*os.File
				for range 1 + n%16 {
					if file, err := os.Open(os.DevNull); err == nil {
						files = append(files, file)
					}
				}
				for _, file := range files {
					file.Close()
				}
				select {
				case <-ended:
					return
				default:
				}
			}
		})
	}
	defer others.Wait()
	defer close(ended)
	for range 100 {
		p, err := Start(Spec{Path: "/bin/true", Namespaces: unix.CLONE_NEWPID, Tree: &Tree{Mount: t.TempDir()}})
		if err != nil {
			t.Fatal(err)
		}
		<-p.Done()
	}
}
