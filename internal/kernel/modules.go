package kernel

import (
	"bytes"
	"debug/elf"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"regexp"
	"strings"

	"github.com/vmsan/vmsan/internal/initramfs"
)

// Bounds on a directory of modules. Debian's largest has 4,000 modules and
// a modules.dep of 600 kB.
const (
	maxModuleFiles = 50_000
	maxTable       = 16 << 20
	maxModule      = 64 << 20
	maxDepth       = 64
)

// moduleFile matches a module's file name, which may have dashes where the
// kernel's own name for the module has underscores.
var moduleFile = regexp.MustCompile(`^([A-Za-z0-9_-]+)\.ko(\.(xz|zst|gz))?$`)

// moduleTree is a directory of modules, such as /lib/modules/VERSION.
type moduleTree struct {
	fsys    fs.FS
	img     image
	paths   map[string]string   // of each module, below the directory
	builtin map[string]bool     // modules that are part of the kernel
	table   map[string][]string // what each depends on; nil if nobody ran depmod
}

// modulesIn returns the wanted modules in dir and all they depend on, in load
// order. An error that is fs.ErrNotExist means that there is no such
// directory.
func modulesIn(dir string, img image) ([]initramfs.Module, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	t, err := readTree(root.FS(), img)
	if err != nil {
		return nil, invalid(fmt.Errorf("read modules of %s: %w", img.version, err))
	}
	modules, err := t.closure()
	if err != nil {
		return nil, invalid(fmt.Errorf("take modules of %s: %w", img.version, err))
	}
	return modules, nil
}

func readTree(fsys fs.FS, img image) (*moduleTree, error) {
	t := &moduleTree{fsys: fsys, img: img}
	var err error
	if t.paths, err = findModules(fsys); err != nil {
		return nil, err
	}
	builtin, err := readTable(fsys, "modules.builtin")
	if err != nil {
		return nil, err
	}
	t.builtin = parseBuiltin(builtin)
	dep, err := readTable(fsys, "modules.dep")
	if err != nil || dep == nil {
		return t, err
	}
	t.table, err = parseDep(dep)
	return t, err
}

// findModules returns the paths of all modules by their names.
func findModules(fsys fs.FS) (map[string]string, error) {
	paths := make(map[string]string)
	err := fs.WalkDir(fsys, ".", func(p string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, ok := moduleOf(p)
		if !ok || !e.Type().IsRegular() {
			return nil
		}
		if len(paths) >= maxModuleFiles {
			return fmt.Errorf("more than %d modules", maxModuleFiles)
		}
		paths[name] = p
		return nil
	})
	return paths, err
}

// moduleOf returns the name of the module in the file p.
func moduleOf(p string) (string, bool) {
	m := moduleFile.FindStringSubmatch(path.Base(p))
	if m == nil {
		return "", false
	}
	return strings.ReplaceAll(m[1], "-", "_"), true
}

// readTable returns nil for a file that is not there.
func readTable(fsys fs.FS, name string) ([]byte, error) {
	f, err := fsys.Open(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := readAtMost(f, maxTable)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return data, nil
}

// parseBuiltin reads modules.builtin: a path on each line.
func parseBuiltin(data []byte) map[string]bool {
	builtin := make(map[string]bool)
	for line := range strings.Lines(string(data)) {
		if name, ok := moduleOf(strings.TrimSpace(line)); ok {
			builtin[name] = true
		}
	}
	return builtin
}

// parseDep reads modules.dep: on each line a module's path, a colon, and the
// paths of those it depends on.
func parseDep(data []byte) (map[string][]string, error) {
	table := make(map[string][]string)
	for line := range strings.Lines(string(data)) {
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		file, deps, ok := strings.Cut(line, ":")
		name, isModule := moduleOf(file)
		if !ok || !isModule {
			return nil, fmt.Errorf("modules.dep: malformed line %.100q", line)
		}
		table[name] = []string{}
		for dep := range strings.FieldsSeq(deps) {
			on, ok := moduleOf(dep)
			if !ok {
				return nil, fmt.Errorf("modules.dep: %s depends on %.100q, which is no module", name, dep)
			}
			table[name] = append(table[name], on)
		}
	}
	return table, nil
}

func (t *moduleTree) has(name string) bool {
	return t.builtin[name] || t.paths[name] != ""
}

// closure returns the wanted modules, each behind those it depends on.
func (t *moduleTree) closure() ([]initramfs.Module, error) {
	if missing := missingEssentials(t); len(missing) > 0 {
		return nil, fmt.Errorf("the kernel lacks %s, which guests need", strings.Join(missing, ", "))
	}
	l := loader{tree: t, state: make(map[string]bool)}
	for _, w := range wanted {
		if !t.has(w.name) {
			continue
		}
		if err := l.add(w.name, 0); err != nil {
			return nil, err
		}
	}
	return l.modules, nil
}

// loader walks the dependencies depth first.
type loader struct {
	tree    *moduleTree
	state   map[string]bool // false while on the path to here, true when added
	modules []initramfs.Module
}

func (l *loader) add(name string, depth int) error {
	if l.tree.builtin[name] {
		return nil
	}
	if added, seen := l.state[name]; added {
		return nil
	} else if seen {
		return fmt.Errorf("module %s depends on itself", name)
	}
	if depth > maxDepth {
		return fmt.Errorf("module %s: dependencies are more than %d deep", name, maxDepth)
	}
	l.state[name] = false
	data, err := l.tree.read(name)
	if err != nil {
		return fmt.Errorf("module %s: %w", name, err)
	}
	deps, err := l.tree.deps(name, data)
	if err != nil {
		return fmt.Errorf("module %s: %w", name, err)
	}
	for _, dep := range deps {
		if err := l.add(dep, depth+1); err != nil {
			return fmt.Errorf("%s needs %w", name, err)
		}
	}
	l.state[name] = true
	l.modules = append(l.modules, initramfs.Module{Name: name, Data: data})
	return nil
}

// read returns a module, decompressed.
func (t *moduleTree) read(name string) ([]byte, error) {
	p := t.paths[name]
	if p == "" {
		return nil, errors.New("it is neither in the package nor built in")
	}
	f, err := t.fsys.Open(p)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := readAtMost(f, maxModule)
	if err != nil || path.Ext(p) == ".ko" {
		return data, err
	}
	return decompress(data, maxModule)
}

// deps returns what a module depends on: from modules.dep, or else, as depmod
// would, from the module itself.
func (t *moduleTree) deps(name string, module []byte) ([]string, error) {
	info, err := modinfo(module)
	if err != nil {
		return nil, err
	}
	// vermagic is the version, a space, and some flags.
	if v, _, _ := strings.Cut(info["vermagic"], " "); v != t.img.version {
		return nil, fmt.Errorf("it is for kernel %.64q, not %s", v, t.img.version)
	}
	if deps, ok := t.table[name]; ok {
		return deps, nil
	}
	return splitDepends(info["depends"]), nil
}

func splitDepends(list string) []string {
	var names []string
	for name := range strings.SplitSeq(list, ",") {
		if name = strings.TrimSpace(name); name != "" {
			names = append(names, strings.ReplaceAll(name, "-", "_"))
		}
	}
	return names
}

// modinfo returns a module's .modinfo section: "key=value" strings, each with
// a NUL behind it. Of keys that are there several times the first counts.
func modinfo(module []byte) (map[string]string, error) {
	f, err := elf.NewFile(bytes.NewReader(module))
	if err != nil {
		return nil, fmt.Errorf("read ELF file: %w", err)
	}
	if f.Type != elf.ET_REL {
		return nil, fmt.Errorf("ELF file is of type %v, not a module", f.Type)
	}
	section := f.Section(".modinfo")
	if section == nil {
		return nil, errors.New("it has no .modinfo")
	}
	if section.Size > uint64(len(module)) {
		return nil, errors.New("its .modinfo is larger than itself")
	}
	data, err := section.Data()
	if err != nil {
		return nil, fmt.Errorf("read .modinfo: %w", err)
	}
	info := make(map[string]string)
	for pair := range strings.SplitSeq(string(data), "\x00") {
		key, value, ok := strings.Cut(pair, "=")
		if _, there := info[key]; ok && !there {
			info[key] = value
		}
	}
	return info, nil
}
