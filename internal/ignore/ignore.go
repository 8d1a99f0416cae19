// Package ignore tells which files of a source tree nobody wants copied: those
// that .gitignore files name, as git reads them, and those that the user does.
package ignore

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/bmatcuk/doublestar/v4"
)

// Bounds of one file of patterns.
const (
	maxFile    = 1 << 20 // bytes
	maxPattern = 4096    // bytes; of one line
)

// pattern is one line.
type pattern struct {
	glob      string // of names below the directory that the line is for
	negated   bool   // what it names is not ignored after all
	directory bool   // it names directories only
}

// parse reads a line as gitignore(5) tells; ok is false for one that says
// nothing.
func parse(line string) (p pattern, ok bool) {
	line = trimSpaces(strings.TrimSuffix(line, "\r"))
	if line == "" || strings.HasPrefix(line, "#") {
		return pattern{}, false
	}
	line, p.negated = strings.CutPrefix(line, "!")
	line, p.directory = strings.CutSuffix(line, "/")
	anchored := strings.Contains(line, "/")
	line = strings.TrimPrefix(line, "/")
	if line == "" || len(line) > maxPattern {
		return pattern{}, false
	}
	p.glob = braces.Replace(line)
	switch {
	case !anchored:
		p.glob = "**/" + p.glob
	case strings.HasSuffix(p.glob, "/**"):
		p.glob += "/*" // all that is in it, and not itself
	}
	return p, doublestar.ValidatePattern(p.glob)
}

// braces mean nothing to git.
var braces = strings.NewReplacer(`\{`, `\{`, `\}`, `\}`, `{`, `\{`, `}`, `\}`, `\\`, `\\`)

// trimSpaces takes spaces off the end, but for one that a backslash keeps.
func trimSpaces(line string) string {
	trimmed := strings.TrimRight(line, " ")
	backslashes := len(trimmed) - len(strings.TrimRight(trimmed, `\`))
	if backslashes%2 == 1 && trimmed != line {
		trimmed += " "
	}
	return trimmed
}

// matches tells whether the line names what is called name below its
// directory.
func (p pattern) matches(name string, directory bool) bool {
	return (directory || !p.directory) && doublestar.MatchUnvalidated(p.glob, name)
}

// verdict is what the last line says that names a file: later ones have the
// last word.
func verdict(patterns []pattern, name string, directory bool) (ignored, said bool) {
	for i := len(patterns) - 1; i >= 0; i-- {
		if patterns[i].matches(name, directory) {
			return !patterns[i].negated, true
		}
	}
	return false, false
}

// Options say whose patterns count.
type Options struct {
	// Git has .gitignore files honoured, and .git left out, which git itself
	// does not track.
	Git bool
	// Exclude has lines of the user's, which have the last word.
	Exclude []string
}

// Rules are those of a tree. They read each .gitignore once, when a name beside
// or below it is first asked for. They are for one goroutine.
type Rules struct {
	root string
	git  bool
	// above has the patterns of directories around the tree, up to the top of
	// its repository, the outermost first, each with the path from there.
	above   []aboveRules
	exclude []pattern
	below   map[string][]pattern // by directory
	decided map[string]bool      // of directories, which are asked for often
	sealed  bool
	err     error
}

type aboveRules struct {
	path     string // from there to the tree
	patterns []pattern
}

// New returns the rules of the tree at root.
func New(root string, o Options) (*Rules, error) {
	r := &Rules{root: root, git: o.Git, below: map[string][]pattern{}, decided: map[string]bool{}}
	var err error
	if r.exclude, err = parseAll(o.Exclude); err != nil {
		return nil, err
	}
	if o.Git {
		return r, r.lookAbove()
	}
	return r, nil
}

// Check tells whether lines of the user's are patterns.
func Check(lines []string) error {
	_, err := parseAll(lines)
	return err
}

func parseAll(lines []string) (patterns []pattern, err error) {
	for _, line := range lines {
		p, ok := parse(line)
		if !ok {
			return nil, fmt.Errorf("%.200q is not a pattern", line)
		}
		patterns = append(patterns, p)
	}
	return patterns, nil
}

// lookAbove reads the files of directories around the tree, if it is in a
// repository.
func (r *Rules) lookAbove() error {
	absolute, err := filepath.Abs(r.root)
	if err != nil {
		return err
	}
	var around []aboveRules
	for directory, below := absolute, ""; ; {
		if _, err := os.Lstat(filepath.Join(directory, ".git")); err == nil {
			r.above = around
			return nil
		}
		parent := filepath.Dir(directory)
		if parent == directory {
			return nil // it is in none
		}
		below = path.Join(filepath.Base(directory), below)
		directory = parent
		patterns, err := read(filepath.Join(directory, ".gitignore"))
		if err != nil {
			return err
		}
		around = append([]aboveRules{{below, patterns}}, around...)
	}
}

// read reads a file of patterns: none if there is no such file.
func read(file string) ([]pattern, error) {
	// Nothing that a link leads to counts, nor does a pipe, which would be
	// waited for.
	info, err := os.Lstat(file)
	if errors.Is(err, fs.ErrNotExist) || err == nil && !info.Mode().IsRegular() {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	f, err := os.Open(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	patterns, err := readPatterns(f)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", file, err)
	}
	return patterns, nil
}

func readPatterns(r io.Reader) (patterns []pattern, err error) {
	lines := bufio.NewScanner(io.LimitReader(r, maxFile))
	lines.Buffer(nil, maxFile+1)
	for first := true; lines.Scan(); first = false {
		line := lines.Text()
		if first {
			line = strings.TrimPrefix(line, "\ufeff")
		}
		if p, ok := parse(line); ok {
			patterns = append(patterns, p)
		}
	}
	return patterns, lines.Err()
}

// Ignored tells whether a name below the tree is left out, for its own sake or
// for that of a directory around it: what is in one cannot be taken back in.
func (r *Rules) Ignored(name string, directory bool) bool {
	if name == "." {
		return false
	}
	if parent := path.Dir(name); parent != "." && r.ignoredDirectory(parent) {
		return true
	}
	if directory {
		return r.ignoredDirectory(name)
	}
	return r.ignored(name, false)
}

func (r *Rules) ignoredDirectory(name string) bool {
	if ignored, ok := r.decided[name]; ok {
		return ignored
	}
	ignored := false
	if parent := path.Dir(name); parent != "." {
		ignored = r.ignoredDirectory(parent)
	}
	ignored = ignored || r.ignored(name, true)
	r.decided[name] = ignored
	return ignored
}

// ignored looks at a name alone.
func (r *Rules) ignored(name string, directory bool) bool {
	if ignored, said := verdict(r.exclude, name, directory); said {
		return ignored
	}
	if !r.git {
		return false
	}
	if path.Base(name) == ".git" {
		return true
	}
	// Files nearer to the name have the last word.
	for at := path.Dir(name); ; at = path.Dir(at) {
		below := name
		if at != "." {
			below = name[len(at)+1:]
		}
		if ignored, said := verdict(r.of(at), below, directory); said {
			return ignored
		}
		if at == "." {
			break
		}
	}
	for i := len(r.above) - 1; i >= 0; i-- {
		if ignored, said := verdict(r.above[i].patterns, path.Join(r.above[i].path, name), directory); said {
			return ignored
		}
	}
	return false
}

// of are the patterns of a directory of the tree.
func (r *Rules) of(directory string) []pattern {
	patterns, ok := r.below[directory]
	if !ok && !r.sealed {
		var err error
		if patterns, err = read(filepath.Join(r.root, directory, ".gitignore")); err != nil && r.err == nil {
			r.err = err
		}
		r.below[directory] = patterns
	}
	return patterns
}

// Seal has no more files be read: names from now on may be of directories that
// the tree does not have, or that somebody else made up.
func (r *Rules) Seal() { r.sealed = true }

// Err is the first error that kept a file of patterns from being read. Who
// copies something then does not know what was to stay.
func (r *Rules) Err() error { return r.err }
