package jail

import (
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

// A file that was closed fails the open, and does not leave the child waiting.
func TestOpensOfClosedFile(t *testing.T) {
	file := given(t, "")
	file.Close()
	spec := Spec{Path: "/usr/bin/perl", Args: []string{"-e", `open(my $f, "+<", "/memory") or print $!`}}
	spec.Opens = map[string]*os.File{"/memory": file}
	if got := output(t, spec); got != "Bad file descriptor" {
		t.Errorf("got %q", got)
	}
}
