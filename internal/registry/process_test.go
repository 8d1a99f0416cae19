package registry_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmsan/vmsan/api"
	"github.com/vmsan/vmsan/internal/testenv"
)

// pullHelper makes this program pull a reference into a directory, as another
// process.
const pullHelper = "VMSAN_TEST_PULL"

func TestMain(m *testing.M) {
	if ref := os.Getenv(pullHelper); ref != "" {
		if _, err := pull(context.Background(), client(os.Args[1]), ref); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	if os.Getenv(plainHelper) != "" {
		os.Exit(m.Run()) // it is in the lab already
	}
	os.Exit(testenv.Main(m))
}

// rerun runs one test in another process.
func rerun(t *testing.T, test string, env ...string) ([]byte, error) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run", "^"+test+"$", "-test.count", "1")
	cmd.Env = append(os.Environ(), env...)
	return cmd.CombinedOutput()
}

func start(t *testing.T, ref, dir string) *exec.Cmd {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0], dir)
	cmd.Env = append(os.Environ(), pullHelper+"="+ref)
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return cmd
}

// Two processes that pull the same image at the same time download it once.
func TestTwoProcesses(t *testing.T) {
	h, dir := newHub(t), t.TempDir()
	img := newImage(t, "amd64", 1<<20, 2<<20, 100)
	h.push(t, "app", img)
	first := blobPath(t, "app", img, 0)
	h.onGet(func(_ http.ResponseWriter, r *http.Request) bool {
		if r.URL.Path == first {
			// Until both have asked what there is to get, and time to try.
			for h.asked("/v2/app/manifests/latest") < 2 {
				time.Sleep(time.Millisecond)
			}
			time.Sleep(200 * time.Millisecond)
		}
		return false
	})
	one, two := start(t, h.host()+"/app", dir), start(t, h.host()+"/app", dir)
	if err := one.Wait(); err != nil {
		t.Error(err)
	}
	if err := two.Wait(); err != nil {
		t.Error(err)
	}
	for i := range 3 {
		if n := h.asked(blobPath(t, "app", img, i)); n != 1 {
			t.Errorf("layer %d was asked for %d times", i, n)
		}
	}
	if left := begun(t, dir); len(left) > 0 {
		t.Errorf("begun blobs are left: %v", left)
	}
}

// A pull that was killed goes on where it was.
func TestKilled(t *testing.T) {
	h, dir := newHub(t), t.TempDir()
	img := newImage(t, "amd64", 3<<20)
	h.push(t, "app", img)
	path := blobPath(t, "app", img, 0)
	half := make(chan struct{})
	h.onGet(func(w http.ResponseWriter, r *http.Request) bool {
		if r.URL.Path != path {
			return false
		}
		slow := &halting{ResponseWriter: w, left: 2 << 20, halted: half, until: r.Context()}
		h.handler.ServeHTTP(&counted{slow, h, true}, r)
		return true
	})
	child := start(t, h.host()+"/app", dir)
	<-half
	partial := filepath.Join(dir, "blobs", "partial")
	for {
		list := names(t, partial)
		if len(list) == 1 {
			if info, err := os.Stat(filepath.Join(partial, list[0])); err == nil && info.Size() >= 1<<20 {
				break
			}
		}
		time.Sleep(time.Millisecond)
	}
	if err := child.Process.Signal(unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	child.Wait()
	if kept := names(t, filepath.Join(dir, "blobs", "sha256")); len(kept) > 0 {
		t.Errorf("half a blob passes for one: %v", kept)
	}
	var asked atomic.Value
	h.onGet(func(_ http.ResponseWriter, r *http.Request) bool {
		if r.URL.Path == path {
			asked.Store(r.Header.Get("Range"))
		}
		return false
	})
	p, err := pull(t.Context(), client(dir), h.host()+"/app")
	if err != nil {
		t.Fatal(err)
	}
	p.check(t, img)
	var from, to int64
	if _, err := fmt.Sscanf(asked.Load().(string), "bytes=%d-%d", &from, &to); err != nil || from < 1<<20 || to != p.image.Layers[0].Size-1 {
		t.Errorf("the second pull asked for the range %q of %d bytes", asked.Load(), p.image.Layers[0].Size)
	}
}

// halting stops in the middle of an answer.
type halting struct {
	http.ResponseWriter
	left   int
	halted chan struct{}
	until  context.Context
}

func (w *halting) Write(p []byte) (int, error) {
	if len(p) <= w.left {
		w.left -= len(p)
		return w.ResponseWriter.Write(p)
	}
	n, err := w.ResponseWriter.Write(p[:w.left])
	if err != nil {
		return n, err
	}
	w.ResponseWriter.(http.Flusher).Flush()
	close(w.halted)
	<-w.until.Done()
	return n, io.ErrClosedPipe
}

// A full disk is told of as such, and what filled it is given back.
func TestFullDisk(t *testing.T) {
	testenv.RequireRoot(t)
	h, dir := newHub(t), t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=1m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	img := newImage(t, "amd64", 3<<20)
	h.push(t, "app", img)
	if _, err := pull(t.Context(), client(dir), h.host()+"/app"); !api.HasCode(err, api.ErrDiskFull) {
		t.Errorf("got error %v, want ErrDiskFull", err)
	}
	if left := begun(t, dir); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
	if err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_REMOUNT, "size=8m"); err != nil {
		t.Fatal(err)
	}
	p, err := pull(t.Context(), client(dir), h.host()+"/app")
	if err != nil {
		t.Fatal(err)
	}
	p.check(t, img)
}
