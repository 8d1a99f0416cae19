package ignore

import (
	"bytes"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// makeTree writes files, and directories where a name ends in a slash.
func makeTree(t *testing.T, root string, files map[string]string) {
	t.Helper()
	for name, content := range files {
		file := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if strings.HasSuffix(name, "/") {
			if err := os.MkdirAll(file, 0o755); err != nil {
				t.Fatal(err)
			}
			continue
		}
		if err := os.WriteFile(file, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// ofGit are the files that git would track.
func ofGit(t *testing.T, root string) string {
	t.Helper()
	cmd := exec.Command("git", "-c", "core.excludesFile=/dev/null", "ls-files", "-z", "--others", "--exclude-standard")
	cmd.Dir = root
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("git ls-files: %v", err)
	}
	return string(bytes.ReplaceAll(out, []byte{0}, []byte{'\n'}))
}

// ofOurs are the files that the rules leave.
func ofOurs(t *testing.T, root string) string {
	t.Helper()
	rules, err := New(root, Options{Git: true})
	if err != nil {
		t.Fatal(err)
	}
	var names strings.Builder
	err = filepath.WalkDir(root, func(file string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, err := filepath.Rel(root, file)
		if err != nil {
			return err
		}
		if rules.Ignored(filepath.ToSlash(name), entry.IsDir()) {
			if entry.IsDir() {
				return fs.SkipDir
			}
			return nil
		}
		if !entry.IsDir() {
			fmt.Fprintln(&names, filepath.ToSlash(name))
		}
		return nil
	})
	if err != nil || rules.Err() != nil {
		t.Fatal(err, rules.Err())
	}
	return sorted(names.String())
}

func sorted(lines string) string {
	cmd := exec.Command("sort")
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	cmd.Stdin = strings.NewReader(lines)
	out, err := cmd.Output()
	if err != nil {
		return err.Error()
	}
	return string(out)
}

func repository(t *testing.T) string {
	t.Helper()
	if _, err := exec.LookPath("git"); err != nil {
		t.Fatal("git, which this is compared with, is not installed")
	}
	root := t.TempDir()
	if out, err := exec.Command("git", "init", "-q", root).CombinedOutput(); err != nil {
		t.Fatalf("git init: %v: %s", err, out)
	}
	return root
}

// What is left of a tree is what git would track.
func TestLikeGit(t *testing.T) {
	for name, files := range map[string]map[string]string{
		"plain":         {".gitignore": "*.o\nbuild/\n# no\n\n", "a.o": "", "a.c": "", "build/x": "", "sub/build/y": "", "sub/a.o": "", "sub/build.c": ""},
		"anchored":      {".gitignore": "/top\nsub/deep\n", "top": "", "sub/top": "", "sub/deep": "", "other/sub/deep": ""},
		"negated":       {".gitignore": "*.log\n!keep.log\n", "a.log": "", "keep.log": "", "sub/keep.log": ""},
		"never inside":  {".gitignore": "out\n!out/keep\n", "out/keep": "", "out/x": ""},
		"but its files": {".gitignore": "out/*\n!out/keep\n", "out/keep": "", "out/x": ""},
		"nested":        {".gitignore": "*.txt\n", "sub/.gitignore": "!*.txt\n/only\n", "a.txt": "", "sub/a.txt": "", "sub/only": "", "sub/x/only": "", "sub/x/b.txt": ""},
		"stars":         {".gitignore": "a/**/b\n**/c\nd/**\nx**y\n", "a/b": "", "a/1/b": "", "a/1/2/b": "", "c": "", "q/c": "", "d/1": "", "d/2/3": "", "xy": "", "x1y": "", "e/xzzy": ""},
		"classes":       {".gitignore": "[!a]1\n[b-d]2\n?3\n", "a1": "", "b1": "", "c2": "", "e2": "", "x3": "", "xx3": ""},
		"escapes":       {".gitignore": "\\#a\n\\!b\nc\\ \nd \n{e,f}\n", "#a": "", "!b": "", "c ": "", "c": "", "d": "", "d ": "", "{e,f}": "", "e": "", "f": ""},
		"directory":     {".gitignore": "only/\n", "only": "", "sub/only/x": ""},
		"odd lines":     {".gitignore": "\ufeffbom\r\n/\n!\n[\na//b\n***\n!bom2\n", "bom": "", "bom2": "", "x": "", "a/b": ""},
		"odd names":     {".gitignore": "ü*\n*\xff\n", "über": "", "a\xff": "", "ok": ""},
	} {
		t.Run(name, func(t *testing.T) {
			root := repository(t)
			makeTree(t, root, files)
			if got, want := ofOurs(t, root), sorted(ofGit(t, root)); got != want {
				t.Errorf("left:\n%sgit has:\n%s", got, want)
			}
		})
	}
}

// Random trees under random patterns, too.
func TestLikeGitRandom(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	pick := func(from ...string) string { return from[random.IntN(len(from))] }
	segment := func() string { return pick("a", "b", "ab", "*", "a*", "?", "**", "[ab]", "[!a]", "c") }
	for round := range 60 {
		root := repository(t)
		files := map[string]string{}
		for range 30 {
			name := pick("a", "b", "c", "ab", "abc")
			for range random.IntN(4) {
				name = pick("d", "e", "a") + "/" + name
			}
			// A name that is a directory elsewhere is left to be that.
			files[strings.ReplaceAll(name+".", "a/", "a-/")] = ""
			files["d/a/"+pick("b", "c")] = ""
		}
		for _, at := range []string{"", "d/", "d/a/"} {
			var lines strings.Builder
			for range random.IntN(5) {
				line := pick("", "", "!") + pick("", "", "/", "**/") + segment()
				for range random.IntN(3) {
					line += "/" + segment()
				}
				lines.WriteString(line + pick("", "", "/", "/**", ".") + "\n")
			}
			files[at+".gitignore"] = lines.String()
		}
		makeTree(t, root, files)
		if got, want := ofOurs(t, root), sorted(ofGit(t, root)); got != want {
			t.Errorf("round %d: of %q is left:\n%sgit has:\n%s", round, files, got, want)
		}
	}
}

// A tree inside a repository has the rules around it, but for those that leave
// out the tree itself: the user names it.
func TestAbove(t *testing.T) {
	root := t.TempDir()
	makeTree(t, root, map[string]string{".git/": "", ".gitignore": "*.o\nsub\n/sub/tree/top\n", "sub/tree/a.o": "", "sub/tree/a.c": "", "sub/tree/top": "", "sub/tree/deep/top": ""})
	rules, err := New(filepath.Join(root, "sub/tree"), Options{Git: true, Exclude: []string{"/deep/*", "!kept.o"}})
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]bool{".": false, "a.o": true, "a.c": false, "top": true, "deep": false, "deep/top": true, "kept.o": false, ".git": true, "x/.git": true} {
		if got := rules.Ignored(name, name == "deep"); got != want {
			t.Errorf("%s is ignored: %v", name, got)
		}
	}
}

func TestExclude(t *testing.T) {
	for _, line := range []string{"", "#", "[", "/", "!"} {
		if _, err := New(".", Options{Exclude: []string{line}}); err == nil {
			t.Errorf("%q is a pattern", line)
		}
	}
	root := t.TempDir()
	makeTree(t, root, map[string]string{".gitignore": "a", ".git/x": ""})
	rules, err := New(root, Options{Exclude: []string{"*.tmp"}})
	if err != nil {
		t.Fatal(err)
	}
	if rules.Ignored("a", false) || rules.Ignored(".git", true) || !rules.Ignored("b/c.tmp", false) {
		t.Error("without .gitignore the user's patterns alone count")
	}
}

// A pattern may be anybody's, of a repository that was cloned.
func FuzzPatterns(f *testing.F) {
	f.Add("*.o\n!a/**/b/\n[!x]", "a/b/c.o")
	f.Add("a**/[\n\\ \n", "a")
	f.Fuzz(func(t *testing.T, lines, name string) {
		patterns, err := readPatterns(strings.NewReader(lines))
		if err != nil {
			return
		}
		verdict(patterns, name, false)
		verdict(patterns, name, true)
	})
}

// What is made up later leads to no file of the host.
func TestSealed(t *testing.T) {
	root := t.TempDir()
	makeTree(t, root, map[string]string{"a/.gitignore": "x", "b/.gitignore": "x"})
	rules, err := New(root, Options{Git: true})
	if err != nil {
		t.Fatal(err)
	}
	if !rules.Ignored("a/x", false) {
		t.Error("a/x is not ignored")
	}
	rules.Seal()
	if !rules.Ignored("a/x", false) || rules.Ignored("b/x", false) {
		t.Error("sealed rules have read another file, or forgotten one")
	}
	if len(rules.below) != 2 {
		t.Errorf("they keep the patterns of %d directories", len(rules.below))
	}
}
