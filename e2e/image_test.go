package e2e

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmsan/vmsan/api"
	"github.com/vmsan/vmsan/internal/testenv/listing"
)

// Each image is unpacked by GNU tar here and seen by a guest there: modes,
// owners, times, contents, attributes and links of all files are the same.
func TestGuestsSeeWhatTarUnpacks(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	list := build(t, "../internal/testenv/listing/vmsan-list")
	for _, c := range []struct {
		name string
		make func(t *testing.T, dir string)
	}{
		{"everything", makeEverything},
		{"busybox", makeBusybox},
		{"nothing-else", func(t *testing.T, dir string) {}},
		{"linked-etc", makeLinkedEtc},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			c.make(t, dir)
			copyProgram(t, list, filepath.Join(dir, "list"))
			archive := filepath.Join(t.TempDir(), "rootfs.tar")
			command(t, "tar", "-c", "--xattrs", "--xattrs-include=*", "--sparse", "--numeric-owner", "-C", dir, "-f", archive, ".")
			h.compare(t, archive)
		})
	}
	t.Run("debian", func(t *testing.T) {
		archive := filepath.Join(t.TempDir(), "rootfs.tar")
		h.exportRootfs(t, "debian", archive)
		dir := t.TempDir()
		copyProgram(t, list, filepath.Join(dir, "list"))
		command(t, "tar", "-r", "--numeric-owner", "-C", dir, "-f", archive, "./list")
		h.compare(t, archive)
	})
}

// compare has an archive of a root file system unpacked and booted, and what
// was booted made an image again.
func (h *host) compare(t *testing.T, archive string) {
	t.Helper()
	dir := t.TempDir()
	command(t, "tar", "-x", "-p", "--xattrs", "--xattrs-include=*", "--numeric-owner", "-C", dir, "-f", archive)
	want := map[string]string{}
	err := listing.List(dir, func(path, line string) error {
		want[fmt.Sprintf("%q", path)] = line
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	id := h.must("create", "--cold", "--network", "none", "--rootfs", archive)
	out := h.must("exec", id, "--", "/list")
	h.must("image", "commit", id, "committed")
	original := h.exported(t, "sha256:"+h.inspect(id).ImageDigest)
	for name, file := range h.exported(t, "committed") {
		if original[name] != file && !isWritten(fmt.Sprintf("%q", strings.Trim(name, "/"))) && name != "./" {
			t.Errorf("%s is %s in the image of the sandbox, was %s", name, file, original[name])
		}
		delete(original, name)
	}
	for name := range original {
		t.Errorf("%s is not in the image of the sandbox", name)
	}
	h.must("rm", "-f", id)
	got := map[string]string{}
	for line := range strings.Lines(out) {
		path, rest, _ := strings.Cut(strings.TrimSuffix(line, "\n"), " ")
		if i := strings.LastIndex(line, `" `); i >= 0 { // names may have spaces
			path, rest = line[:i+1], strings.TrimSuffix(line[i+2:], "\n")
		}
		got[path] = rest
	}
	differences := 0
	for path, line := range want {
		if got[path] != line && !isWritten(path) {
			if differences++; differences < 20 {
				t.Errorf("%s:\n host  %s\n guest %s", path, line, got[path])
			}
		}
	}
	for path := range got {
		if want[path] == "" && !isWritten(path) {
			t.Errorf("only the guest has %s", path)
		}
	}
	if len(want) < 2 {
		t.Errorf("there are %d files", len(want))
	}
}

// written are the files that a guest gets at its start, and the places where
// something is mounted.
var written = regexp.MustCompile(`^"((.*/)?etc(/(hostname|hosts|resolv\.conf|machine-id))?|(dev|proc|run|sys)(/.*)?)"$`)

func isWritten(path string) bool { return written.MatchString(path) }

// exportRootfs writes the one layer of an exported image to a file.
func (h *host) exportRootfs(t *testing.T, image, path string) {
	t.Helper()
	whole := filepath.Join(t.TempDir(), "image.tar")
	h.must("image", "export", image, whole)
	f, err := os.Open(whole)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var largest string
	var size int64
	for in := tar.NewReader(f); ; {
		header, err := in.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if header.Size > size {
			largest, size = header.Name, header.Size
		}
	}
	out, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	cmd := exec.Command("tar", "-x", "-O", "-f", whole, largest)
	cmd.Stdout = out
	if err := cmd.Run(); err != nil {
		t.Fatal(err)
	}
}

func command(t *testing.T, name string, args ...string) {
	t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %v: %v: %s", name, args, err, out)
	}
}

func copyProgram(t *testing.T, from, to string) {
	t.Helper()
	data, err := os.ReadFile(from)
	if err == nil {
		err = os.MkdirAll(filepath.Dir(to), 0o755)
	}
	if err == nil {
		err = os.WriteFile(to, data, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// makeEverything has one of each kind of file.
func makeEverything(t *testing.T, dir string) {
	t.Helper()
	in := func(name string) string { return filepath.Join(dir, name) }
	long := strings.Repeat("long/", 30) + strings.Repeat("n", 255)
	for _, err := range []error{
		os.MkdirAll(filepath.Dir(in(long)), 0o750),
		os.WriteFile(in(long), []byte("x"), 0o600),
		os.WriteFile(in("a name with spaces \x01 and ünïcode"), nil, 0o644),
		os.WriteFile(in("setuid"), []byte("x"), 0o755),
		os.Chown(in("setuid"), 70_000, 4_000_000_000),
		os.Chmod(in("setuid"), os.ModeSetuid|os.ModeSetgid|0o711),
		os.Mkdir(in("sticky"), 0o700),
		os.Chmod(in("sticky"), os.ModeSticky|0o777),
		unix.Mknod(in("char"), unix.S_IFCHR|0o666, int(unix.Mkdev(300, 70_000))),
		unix.Mknod(in("block"), unix.S_IFBLK|0o660, int(unix.Mkdev(8, 1))),
		unix.Mkfifo(in("fifo"), 0o622),
		os.Symlink("setuid", in("fast")),
		os.Symlink(strings.Repeat("s/", 100), in("slow")),
		os.Symlink("/nowhere", in("dangling")),
		os.Link(in("setuid"), in("setuid-too")),
		os.Link(in("fast"), in("fast-too")),
		os.Link(in(long), in("long-too")),
		os.WriteFile(in("sparse"), []byte("begin"), 0o644),
		os.Truncate(in("sparse"), 64<<20),
		os.WriteFile(in("capable"), []byte("x"), 0o755),
		unix.Setxattr(in("setuid"), "user.100%=sure", []byte("yes"), 0),
		unix.Setxattr(in("capable"), "security.capability", []byte("\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"), 0),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	// So many that they do not fit into an inode, in every order.
	for i, name := range []string{"zz", "a", "middle", "b10", "b9", "longer-than-others"} {
		if err := unix.Setxattr(in("capable"), "user."+name, []byte(strings.Repeat("v", 60*i)), 0); err != nil {
			t.Fatal(err)
		}
	}
	f, err := os.OpenFile(in("sparse"), os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt([]byte("almost the end"), 64<<20-5000); err != nil {
		t.Fatal(err)
	}
}

func makeBusybox(t *testing.T, dir string) {
	t.Helper()
	path, err := exec.LookPath("busybox")
	if err != nil {
		t.Fatal(err)
	}
	copyProgram(t, path, filepath.Join(dir, "bin/busybox"))
	for _, name := range []string{"sh", "ls"} {
		if err := os.Symlink("busybox", filepath.Join(dir, "bin", name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Link(filepath.Join(dir, "bin/busybox"), filepath.Join(dir, "bin/cat")); err != nil {
		t.Fatal(err)
	}
}

// makeLinkedEtc has an /etc that leads to a directory which the host has too.
// Nothing is ever written there (N9, and finding 15 of what came before).
func makeLinkedEtc(t *testing.T, dir string) {
	t.Helper()
	outside := filepath.Join(t.TempDir(), "etc")
	inside := filepath.Join(dir, outside)
	for _, err := range []error{
		os.Mkdir(outside, 0o755),
		os.MkdirAll(inside, 0o755),
		os.WriteFile(filepath.Join(inside, "passwd"), []byte("app:x:1234:1235::/home/app:/bin/sh\n"), 0o644),
		os.WriteFile(filepath.Join(inside, "group"), []byte("app:x:1235:\n"), 0o644),
		os.Symlink(outside, filepath.Join(dir, "etc")),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() {
		if left := names(t, outside); len(left) > 0 {
			t.Errorf("where the image's /etc leads, the host has got %v", left)
		}
	})
}

// What an image's configuration says is done, unless something else is asked
// for.
func TestImageConfig(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	dir := t.TempDir()
	makeLinkedEtc(t, dir)
	copyProgram(t, build(t, "../internal/testenv/listing/vmsan-list"), filepath.Join(dir, "list"))
	archive := filepath.Join(t.TempDir(), "rootfs.tar")
	command(t, "tar", "-c", "--numeric-owner", "-C", dir, "-f", archive, ".")
	saved := saveImage(t, archive, map[string]any{
		"Env": []string{"PATH=/", "A=image", "B=image"}, "WorkingDir": "/srv/app", "User": "app",
		"Entrypoint": []string{"list", "who"}, "Cmd": []string{"default"}, "Labels": map[string]string{"k": "v"},
		"ExposedPorts": map[string]any{"80/tcp": struct{}{}}, "StopSignal": "SIGINT",
	})
	h.must("image", "import", saved, "configured")
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"configured"}, `1234:1235 in /srv/app with ["default"], A=image B=image`},
		{[]string{"--entrypoint", "configured", "--", "other"}, `1234:1235 in /srv/app with ["other"], A=image B=image`},
		{[]string{"-e", "A=mine", "-w", "/tmp", "-u", "0", "configured", "--", "/list", "who"}, `0:0 in /tmp with [], A=mine B=image`},
	} {
		args := append([]string{"run", "--network", "none", "--memory", "128"}, c.args...)
		if got := h.must(args...); got != c.want {
			t.Errorf("%v: got %s, want %s", c.args, got, c.want)
		}
	}
	var shown struct {
		Names  []string
		Config map[string]any
	}
	if err := json.Unmarshal([]byte(h.must("image", "inspect", "configured")), &shown); err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprintf("%v %v %v", shown.Config["exposed"], shown.Config["labels"], shown.Config["stopSignal"]); got != "[80/tcp] map[k:v] SIGINT" {
		t.Errorf("got %+v", shown)
	}
}

// A main process runs from the start; what it says is in the logs; the sandbox
// ends with it, and asks it to end by the image's signal.
func TestMainProcess(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	dir := t.TempDir()
	copyProgram(t, build(t, "../internal/testenv/listing/vmsan-list"), filepath.Join(dir, "list"))
	archive := filepath.Join(t.TempDir(), "rootfs.tar")
	command(t, "tar", "-c", "-C", dir, "-f", archive, ".")
	for _, words := range [][]string{{"who", "it"}, {"wait"}, {"fail"}} {
		h.must("image", "import", saveImage(t, archive, map[string]any{
			"Entrypoint": []string{"/list"}, "Cmd": words, "StopSignal": "SIGINT", "Env": []string{"A=image"},
		}), words[0])
	}
	create := func(image string, more ...string) {
		t.Helper()
		args := append([]string{"create", "--network", "none", "--memory", "128", "--entrypoint", "--image", image, "--name", image}, more...)
		h.must(args...)
	}
	create("who")
	h.must("wait", "who")
	h.logsHave(t, "who", `0:0 in / with ["it"], A=image B=`, 1)
	h.logsHave(t, "who", "the main process ended: exit status 0", 1)
	h.must("start", "who")
	h.must("wait", "who")
	h.logsHave(t, "who", `0:0 in / with ["it"], A=image B=`, 1)

	// It is started again after its machine was killed.
	create("wait", "--restart", "always")
	h.awaitLog(t, "wait", "waiting")
	if err := h.process(h.inspect("wait").PIDs.VMM).Kill(); err != nil {
		t.Fatal(err)
	}
	h.awaitEnd(t, "wait")
	h.must("start", "wait")
	h.awaitLog(t, "wait", "waiting")
	h.must("stop", "wait")
	h.logsHave(t, "wait", "interrupted", 1)
	h.logsHave(t, "wait", "not by", 0)

	create("fail", "--restart", "on-failure:2")
	h.must("wait", "fail")
	h.logsHave(t, "fail", "failing, as was asked for", 3)
	h.logsHave(t, "fail", "the main process ended: exit status 1", 3)

	if _, err := h.vmsan("create", "--network", "none", "--image", "debian", "--entrypoint"); err == nil || !strings.Contains(err.Error(), "no entrypoint") {
		t.Errorf("an image without a command: got error %v", err)
	}
}

func (h *host) awaitLog(t *testing.T, vm, text string) {
	t.Helper()
	for deadline := time.Now().Add(patience); !strings.Contains(h.must("logs", vm), text); time.Sleep(100 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s does not say %q", vm, text)
		}
	}
}

// awaitEnd waits for a sandbox whose VMM was killed.
func (h *host) awaitEnd(t *testing.T, vm string) {
	t.Helper()
	for deadline := time.Now().Add(patience); h.inspect(vm).Status == api.StatusRunning; time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s runs without its VMM", vm)
		}
	}
}

func (h *host) logsHave(t *testing.T, vm, text string, times int) {
	t.Helper()
	if out := h.must("logs", vm); strings.Count(out, text) != times {
		t.Errorf("%q is not %d times in the logs of %s:\n%s", text, times, vm, out)
	}
}

// saveImage makes an archive as "docker save" does, with one layer.
func saveImage(t *testing.T, layer string, config map[string]any) string {
	t.Helper()
	body, err := os.ReadFile(layer)
	if err != nil {
		t.Fatal(err)
	}
	all, err := json.Marshal(map[string]any{
		"os": "linux", "architecture": runtime.GOARCH, "config": config,
		"rootfs": map[string]any{"diff_ids": []string{fmt.Sprintf("sha256:%x", sha256.Sum256(body))}},
	})
	if err != nil {
		t.Fatal(err)
	}
	name := fmt.Sprintf("%x.json", sha256.Sum256(all))
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, f := range []struct {
		name string
		body []byte
	}{
		{name, all},
		{"manifest.json", fmt.Appendf(nil, `[{"Config":%q,"Layers":["layer.tar"]}]`, name)},
		{"layer.tar", body},
	} {
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: f.name, Mode: 0o644, Size: int64(len(f.body))}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(f.body); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "saved.tar")
	if err := os.WriteFile(path, b.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

// Nothing that something was made of can be removed.
func TestImagesInUseStay(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	dir := t.TempDir()
	copyProgram(t, build(t, "../internal/testenv/listing/vmsan-list"), filepath.Join(dir, "list"))
	archive := filepath.Join(t.TempDir(), "rootfs.tar")
	command(t, "tar", "-c", "-C", dir, "-f", archive, ".")
	digest := h.must("image", "import", archive, "used")
	h.must("create", "--network", "none", "--memory", "128", "--image", "used", "--name", "user")
	if _, err := h.vmsan("image", "rm", "used"); err == nil || !strings.Contains(err.Error(), "is used by") {
		t.Errorf("image of a sandbox: got error %v", err)
	}
	if out := h.must("image", "prune", "--all", "-q"); strings.Contains(out, digest) {
		t.Error("prune removed an image that a sandbox uses")
	}
	h.must("stop", "user")
	h.must("start", "user")
	h.must("snapshot", "create", "--name", "saved", "--stop", "user")
	h.must("rm", "user")
	if _, err := h.vmsan("image", "rm", "used"); err == nil || !strings.Contains(err.Error(), "is used by snapshot") {
		t.Errorf("image of a snapshot: got error %v", err)
	}
	h.must("snapshot", "rm", "saved")
	if out := h.must("image", "rm", "used"); out != digest {
		t.Errorf("got %q, want %q", out, digest)
	}
}
