package jail

import (
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/vmsan/vmsan/internal/testenv"
)

// given is a file that only this process may open, open for reading.
func given(t *testing.T, text string) *os.File {
	t.Helper()
	path := filepath.Join(t.TempDir(), "given")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	file, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { file.Close() })
	return file
}

// opensScript opens for reading and writing, as a shell cannot without
// O_CREAT. Debian has perl always.
const opensScript = `
sub try {
	my ($mode, $path) = @_;
	open(my $f, $mode, $path) or return print "$path: no\n";
	print "$path: ", scalar(<$f>) // "", (syswrite($f, "broken") ? "written" : "not written"), "\n";
}
$| = 1;
try("+<", "/memory");
try("+<", "/memory");
try("<", "/memory");
try("+<", "/memory/longer");
try("+<", "/dev/null");
`

func TestOpens(t *testing.T) {
	testenv.RequireRoot(t)
	spec := jailed(t, "")
	spec.Path, spec.Args = "/usr/bin/perl", []string{"-e", opensScript}
	spec.Root.Devices = []Device{{Path: "/dev/null", Major: 1, Minor: 3}}
	file := given(t, "given ")
	spec.Opens = map[string]*os.File{"/memory": file}
	want := "/memory: given not written\n/memory: not written\n/memory: no\n/memory/longer: no\n/dev/null: written\n"
	if got := output(t, spec); got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if text, err := os.ReadFile(file.Name()); err != nil || string(text) != "given " {
		t.Errorf("the file holds %q, %v", text, err)
	}
}

func TestOpensWithoutRoot(t *testing.T) {
	spec := Spec{Path: "/usr/bin/perl", Args: []string{"-e", `open(my $f, "+<", "/nowhere/memory") or die; print <$f>`}}
	spec.Opens = map[string]*os.File{"/nowhere/memory": given(t, "given")}
	if got := output(t, spec); got != "given" {
		t.Errorf("got %q", got)
	}
}

func TestOpensOfClosedFile(t *testing.T) {
	file := given(t, "")
	file.Close()
	spec := Spec{Path: "/bin/true", Opens: map[string]*os.File{"/memory": file}}
	if p, err := Start(spec); err == nil {
		await(t, p)
		t.Error("a file that is closed was promised")
	}
}

// The caller may close its file as soon as the child was started.
func TestOpensAfterClose(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	in, goAhead, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	file := given(t, "given")
	p := start(t, Spec{
		Path: "/usr/bin/perl", Args: []string{"-e", `<STDIN>; open(my $f, "+<", "/memory") or die; print <$f>`},
		Stdin: in, Stdout: w, Opens: map[string]*os.File{"/memory": file},
	})
	file.Close()
	in.Close()
	w.Close()
	goAhead.Close()
	await(t, p)
	if text, err := io.ReadAll(r); err != nil || string(text) != "given" {
		t.Errorf("got %q, %v", text, err)
	}
}
