package main

import (
	"bytes"
	"encoding/json"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/vmsan/vmsan/internal/image"
	"github.com/vmsan/vmsan/internal/setup"
	"github.com/vmsan/vmsan/internal/testenv"
)

func TestMain(m *testing.M) { os.Exit(testenv.Main(m, testenv.BuildSystemdImage)) }

func testRelease(binary, out string) release {
	return release{version: "1.2.3~test", arch: runtime.GOARCH, binary: binary, made: time.Unix(1e9, 0).UTC(), source: "../..", out: out, compression: "xz"}
}

// Every command has a page, which says nothing of when it was made.
func TestManuals(t *testing.T) {
	pages, err := testRelease("", "").manuals()
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"vmsan.1": "vmsan", "vmsan-sync.1": "gitignore", "vmsan-snapshot-create.1": "snapshot", "vmsan-recover.1": "vmsan-restore"} {
		if page := string(pages[name]); !strings.Contains(page, want) || !strings.Contains(page, "Sep 2001") || strings.Contains(page, "Auto generated") {
			t.Errorf("%s is %q", name, page)
		}
	}
}

// What is in a binary is listed, with versions.
func TestBOM(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	text, err := testRelease(self, "").bom()
	if err != nil {
		t.Fatal(err)
	}
	var bom struct {
		BOMFormat  string
		Components []struct{ Name, Version, PURL string }
	}
	if err := json.Unmarshal(text, &bom); err != nil || bom.BOMFormat != "CycloneDX" {
		t.Fatalf("%v: %s", err, text)
	}
	for _, name := range []string{"std", "github.com/spf13/cobra", "golang.org/x/sys"} {
		i := slices.IndexFunc(bom.Components, func(c struct{ Name, Version, PURL string }) bool { return c.Name == name })
		if i < 0 || bom.Components[i].Version == "" || !strings.HasPrefix(bom.Components[i].PURL, "pkg:golang/"+name+"@") {
			t.Errorf("%s is not among %+v", name, bom.Components)
		}
	}
}

// filesIn are the names below root that a package may be asked about.
func filesIn(t *testing.T, root string) (names []string) {
	t.Helper()
	err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name := strings.TrimPrefix(path, root)
		// dpkg's own notes, and what is no file of the disk.
		if slices.Contains([]string{"/dev", "/proc", "/sys", "/tmp", "/var/lib/dpkg", "/var/log", "/var/cache"}, name) {
			return fs.SkipDir
		}
		names = append(names, name)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return names
}

// The same source makes the same bytes, whoever makes it. The agent takes the
// binary's place: it is smaller, and made of modules as well.
func TestSame(t *testing.T) {
	testenv.RequireRoot(t)
	dirs := []string{t.TempDir(), t.TempDir()}
	var names []string
	for i, dir := range dirs {
		defer unix.Umask(unix.Umask([]int{0o022, 0o077}[i]))
		var err error
		if names, err = testRelease("../../internal/agent/binary/dist/vmsan-agent", dir).make(); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range names {
		a, err := os.ReadFile(filepath.Join(dirs[0], name))
		if err != nil {
			t.Fatal(err)
		}
		if b, err := os.ReadFile(filepath.Join(dirs[1], name)); err != nil || !bytes.Equal(a, b) {
			t.Errorf("%s is another each time, %v", name, err)
		}
	}
}

// TestPackage makes the package of this machine's kind, installs it in a Debian
// system, uses what is in it, upgrades and purges it.
func TestPackage(t *testing.T) {
	testenv.RequireRoot(t)
	layout := testenv.RequireVM(t)
	ready, err := setup.Load(layout)
	if err != nil {
		t.Fatal(err)
	}
	root := debian(t, image.Store{Layout: layout}.RootfsPath(ready.Image))
	mount(t, "--bind", "/dev", root+"/dev")
	before := filesIn(t, root)
	deb := makePackage(t)
	copyInto(t, root+"/tmp/vmsan.deb", deb)
	c := chroot{t, root}
	// QEMU is not in the image, and there is nowhere to get it from.
	const install = "dpkg --force-depends -i /tmp/vmsan.deb"
	c.run(install)
	c.use()
	readPackage(t, deb)

	// A sandbox that runs outlives an upgrade, and keeps what is its own.
	state := root + "/var/lib/vmsan/sandboxes/vm0123456789"
	if err := os.MkdirAll(state, 0o700); err != nil {
		t.Fatal(err)
	}
	lock, err := os.Create(state + "/lock")
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	c.run(install)
	if out := c.run("dpkg --force-depends -P vmsan"); !strings.Contains(out, "sandboxes run") {
		t.Errorf("a purge beside a sandbox says %s", out)
	}
	if _, err := os.Stat(state + "/lock"); err != nil {
		t.Errorf("a purge took a sandbox that runs: %v", err)
	}
	lock.Close()
	c.run(install)
	c.run("dpkg --force-depends -P vmsan")
	if diff := cmp.Diff(before, filesIn(t, root)); diff != "" {
		t.Errorf("a purge leaves (-before +after):\n%s", diff)
	}
}

// chroot runs things in a system.
type chroot struct {
	t    *testing.T
	root string
}

func (c chroot) run(script string) string {
	c.t.Helper()
	cmd := exec.Command("chroot", c.root, "/bin/bash", "-ec", script)
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "DEBIAN_FRONTEND=noninteractive", "LC_ALL=C"}
	out, err := cmd.CombinedOutput()
	if err != nil {
		c.t.Fatalf("%s: %v: %s", script, err, out)
	}
	return string(out)
}

// use tries what the package has installed.
func (c chroot) use() {
	t := c.t
	t.Helper()
	// A binary with the race detector complains that there is no /proc.
	if out := c.run("vmsan version 2>/dev/null"); !strings.HasPrefix(out, "vmsan ") {
		t.Errorf("vmsan version says %s", out)
	}
	if out := c.run(". /usr/share/bash-completion/completions/vmsan && complete -p vmsan && vmsan __complete sna"); !strings.Contains(out, "__start_vmsan") || !strings.Contains(out, "snapshot") {
		t.Errorf("bash completes by %s", out)
	}
	for name, want := range map[string]string{"zsh/vendor-completions/_vmsan": "#compdef vmsan\n", "fish/vendor_completions.d/vmsan.fish": "complete -c vmsan "} {
		if text, err := os.ReadFile(filepath.Join(c.root, "usr/share", name)); err != nil || !strings.Contains(string(text), want) {
			t.Errorf("%s: %v, %.100q", name, err, text)
		}
	}
	if _, err := os.Lstat(c.root + "/etc/systemd/system/multi-user.target.wants/vmsan-restore.service"); err != nil {
		t.Errorf("the service is not enabled: %v", err)
	}
}

// readPackage looks at what is for readers, which the image's dpkg leaves out,
// and for systemd, which is not in the image.
func readPackage(t *testing.T, deb string) {
	t.Helper()
	dir := t.TempDir()
	if out, err := exec.Command("dpkg-deb", "-x", deb, dir).CombinedOutput(); err != nil {
		t.Fatalf("dpkg-deb: %v: %s", err, out)
	}
	if text, err := os.ReadFile(filepath.Join(dir, bomPath)); err != nil || !strings.Contains(string(text), "github.com/spf13/cobra") {
		t.Errorf("%s: %v, %.100q", bomPath, err, text)
	}
	page := exec.Command("man", "--warnings", "--local-file", dir+"/usr/share/man/man1/vmsan-sync.1.gz")
	var complaints bytes.Buffer
	page.Stderr = &complaints
	if out, err := page.Output(); err != nil || !strings.Contains(string(out), "--no-gitignore") || complaints.Len() > 0 {
		t.Errorf("man: %v: %.200s %s", err, out, &complaints)
	}
	if _, err := exec.LookPath("systemd-analyze"); err != nil {
		t.Log("systemd-analyze, which verifies units, is not here")
		return
	}
	unit := filepath.Join(dir, "usr/lib/systemd/system/vmsan-restore.service")
	text, err := os.ReadFile(unit)
	if err != nil {
		t.Fatal(err)
	}
	// What it calls has to be there.
	text = bytes.ReplaceAll(text, []byte("/usr/bin/vmsan"), []byte(filepath.Join(dir, "usr/bin/vmsan")))
	if err := os.WriteFile(unit, text, 0o644); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("systemd-analyze", "verify", "--man=no", unit).CombinedOutput(); err != nil || strings.Contains(string(out), "vmsan-restore") {
		t.Errorf("systemd-analyze verify: %v: %s", err, out)
	}
}
