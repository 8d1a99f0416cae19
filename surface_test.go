package vmsan_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"go/importer"
	"go/token"
	"go/types"
	"io"
	"os"
	"os/exec"
	"strings"
	"testing"
)

const module = "github.com/vmsan/vmsan"

// The library's surface is made of its own types, api's and the standard
// library's: what is internal can change.
func TestSurface(t *testing.T) {
	exports := exportData(t, module, module+"/vmsantest", module+"/api")
	lookup := func(path string) (io.ReadCloser, error) {
		file, ok := exports[path]
		if !ok {
			return nil, errors.New("no export data of " + path)
		}
		return os.Open(file)
	}
	packages := importer.ForCompiler(token.NewFileSet(), "gc", lookup)
	for _, path := range []string{module, module + "/vmsantest", module + "/api"} {
		pkg, err := packages.Import(path)
		if err != nil {
			t.Fatal(err)
		}
		s := surface{t: t, seen: map[types.Type]bool{}}
		exported := 0
		for _, name := range pkg.Scope().Names() {
			if object := pkg.Scope().Lookup(name); object.Exported() {
				exported++
				s.look(pkg.Name()+"."+name, object.Type())
			}
		}
		if exported == 0 {
			t.Errorf("%s exports nothing", path)
		}
	}
}

// exportData names the files with what the compiler knows of packages and all
// that they import.
func exportData(t *testing.T, packages ...string) map[string]string {
	t.Helper()
	out, err := exec.Command("go", append([]string{"list", "-deps", "-export", "-json=ImportPath,Export"}, packages...)...).Output()
	if err != nil {
		t.Fatalf("list packages: %v", err)
	}
	files := map[string]string{}
	for d := json.NewDecoder(bytes.NewReader(out)); ; {
		var p struct{ ImportPath, Export string }
		err := d.Decode(&p)
		if errors.Is(err, io.EOF) {
			return files
		}
		if err != nil {
			t.Fatal(err)
		}
		files[p.ImportPath] = p.Export
	}
}

// surface looks at all that can be reached from outside.
type surface struct {
	t    *testing.T
	seen map[types.Type]bool
}

func (s *surface) look(where string, of types.Type) {
	if s.seen[of] {
		return
	}
	s.seen[of] = true
	switch of := of.(type) {
	case *types.Named:
		s.named(where, of)
	case *types.Alias:
		s.look(where, of.Rhs())
	case *types.Pointer:
		s.look(where, of.Elem())
	case *types.Slice:
		s.look(where, of.Elem())
	case *types.Array:
		s.look(where, of.Elem())
	case *types.Chan:
		s.look(where, of.Elem())
	case *types.Map:
		s.look(where, of.Key())
		s.look(where, of.Elem())
	case *types.Signature:
		s.look(where, of.Params())
		s.look(where, of.Results())
	case *types.Tuple:
		for v := range of.Variables() {
			s.look(where, v.Type())
		}
	case *types.Struct:
		for field := range of.Fields() {
			if field.Exported() {
				s.look(where+"."+field.Name(), field.Type())
			}
		}
	case *types.Interface:
		for m := range of.Methods() {
			s.look(where+"."+m.Name(), m.Type())
		}
	}
}

// named refuses what is internal, and goes into what is ours.
func (s *surface) named(where string, of *types.Named) {
	pkg := of.Obj().Pkg()
	if pkg == nil || pkg.Path() != module && !strings.HasPrefix(pkg.Path(), module+"/") {
		if pkg != nil && strings.Contains(pkg.Path(), ".") {
			s.t.Errorf("%s has %s, which is somebody else's", where, of)
		}
		return
	}
	if strings.Contains(pkg.Path(), "/internal/") {
		s.t.Errorf("%s has %s, which is internal", where, of)
	}
	if !of.Obj().Exported() {
		s.t.Errorf("%s has %s, which has no name outside", where, of)
	}
	s.look(where, of.Underlying())
	for m := range of.Methods() {
		if m.Exported() {
			s.look(where+"."+m.Name(), m.Type())
		}
	}
}
