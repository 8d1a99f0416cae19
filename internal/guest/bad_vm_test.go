package guest_test

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/u-root/u-root/pkg/cpio"

	"github.com/vmsan/vmsan/api"
	"github.com/vmsan/vmsan/internal/kernel"
	"github.com/vmsan/vmsan/internal/setup"
	"github.com/vmsan/vmsan/internal/testenv"
)

// A guest may be anything. Whatever it does instead of coming up, the command
// says so, shows its console, and leaves nothing behind.
func TestGuestsThatDoNotComeUp(t *testing.T) {
	for mode, want := range map[string]string{
		"silent":   "the guest did not say ready within 15s",
		"gone":     "the guest ended before it said ready",
		"babbling": "the guest did not say ready within 15s",
	} {
		t.Run(mode, func(t *testing.T) {
			vmsan := testenv.RequireVmsan(t)
			replaceInit(t, vmsan, buildBadGuest(t, mode))
			stdout, stderr, err := vmsan.Try("create", "--cold", "--no-setup", "--boot-timeout", "15s")
			if err == nil {
				t.Fatalf("it came up as %s", stdout)
			}
			for _, text := range []string{want, "The console said last"} {
				if !strings.Contains(stderr, text) {
					t.Errorf("got %q, want it to say %q", stderr, text)
				}
			}
			if left := vmsan.Run(t, "list", "--json"); strings.Contains(left, `"id"`) {
				t.Errorf("left behind: %s", left)
			}
		})
	}
}

// One that says it is there and then talks nonsense is there, but of no use,
// and goes when it is told to.
func TestGuestThatLies(t *testing.T) {
	vmsan := testenv.RequireVmsan(t)
	replaceInit(t, vmsan, buildBadGuest(t, "liar"))
	id := vmsan.Create(t, "--cold", "--boot-timeout", "30s")
	for range 2 {
		failure := vmsan.Fail(t, "exec", id, "true")
		if failure.Code != api.ErrGuestLink && failure.Code != api.ErrGuest {
			t.Errorf("a command in it: %+v", failure)
		}
	}
	vmsan.Run(t, "stop", "--timeout", "1s", id)
}

func buildBadGuest(t *testing.T, mode string) []byte {
	t.Helper()
	path := filepath.Join(t.TempDir(), "badguest")
	build := exec.Command("go", "build", "-ldflags", "-X main.mode="+mode, "-o", path, "./testdata/badguest")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build: %v: %s", err, out)
	}
	program, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return program
}

// replaceInit puts another init into the test's own copy of the initramfs:
// the kernel unpacks one archive after the other.
func replaceInit(t *testing.T, vmsan testenv.Vmsan, program []byte) {
	t.Helper()
	record, err := setup.Load(vmsan.Layout)
	if err != nil {
		t.Fatal(err)
	}
	path := kernel.InitramfsPath(vmsan.Layout, record.Kernel)
	archive, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	out := bytes.NewBuffer(archive)
	w := cpio.Newc.Writer(out)
	if err := cpio.WriteRecords(w, []cpio.Record{cpio.StaticFile("init", string(program), 0o755)}); err != nil {
		t.Fatal(err)
	}
	if err := cpio.WriteTrailer(w); err != nil {
		t.Fatal(err)
	}
	// It is a hard link to everybody else's.
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, out.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
}

// A disk that is no file system any more is named, and the sandbox can still
// be removed.
func TestCorruptDisk(t *testing.T) {
	vmsan := testenv.RequireVmsan(t)
	id := vmsan.Create(t)
	vmsan.Run(t, "stop", id)
	if err := os.WriteFile(vmsan.Layout.Overlay(id), make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	_, stderr, err := vmsan.Try("start", id)
	if err == nil {
		t.Fatal("it came up")
	}
	if want := "mount /dev/vdb on /mnt/overlay"; !strings.Contains(stderr, want) {
		t.Errorf("got %q, want it to say %q", stderr, want)
	}
}

// PID 1 outlives every signal, and ends the guest in order on those that mean
// it.
func TestSignalsToAgent(t *testing.T) {
	vmsan := testenv.RequireVmsan(t)
	id := vmsan.Create(t)
	vmsan.Exec(t, id, "sh", "-c", "for n in $(seq 1 64); do case $n in 10|12|15|2|30) ;; *) kill -$n 1 2>/dev/null;; esac; done; true")
	vmsan.Exec(t, id, "sh", "-c", "echo x >/srv/file; kill -HUP 1")
	vmsan.Try("exec", "--no-stdin", id, "sh", "-c", "kill -TERM 1; sleep 100")
	vmsan.Run(t, "wait", id)
	vmsan.Run(t, "start", id)
	if got := vmsan.Exec(t, id, "cat", "/srv/file"); got != "x" {
		t.Errorf("what was written before reads %q", got)
	}
}

func TestKernelPanic(t *testing.T) {
	vmsan := testenv.RequireVmsan(t)
	id := vmsan.Create(t)
	_, stderr, err := vmsan.Try("exec", "--no-stdin", id, "sh", "-c", "echo c >/proc/sysrq-trigger")
	if err == nil || stderr == "" {
		t.Errorf("the command in a guest that panicked succeeded: %q, %v", stderr, err)
	}
	vmsan.Run(t, "wait", id)
	if console := vmsan.Run(t, "logs", id); !strings.Contains(console, "Kernel panic") {
		t.Errorf("the console says only:\n%s", console)
	}
	vmsan.Run(t, "start", id)
}
