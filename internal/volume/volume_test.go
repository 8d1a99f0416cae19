package volume

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vmsan/vmsan/api"
	"github.com/vmsan/vmsan/internal/scratch"
	"github.com/vmsan/vmsan/internal/store"
	"github.com/vmsan/vmsan/internal/testenv"
)

// roleVar makes the test binary another process that uses a store: "hold" has
// a volume open until it dies, "make" makes one after the other.
const roleVar = "VMSAN_TEST_VOLUME_ROLE"

func TestMain(m *testing.M) {
	if role := os.Getenv(roleVar); role != "" {
		if err := play(role, os.Args[1]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(testenv.Main(m))
}

func play(role, dir string) error {
	s := Store{store.Layout{Dir: dir}}
	if role == "hold" {
		f, err := s.Open("data", false)
		if err != nil {
			return err
		}
		fmt.Println("held")
		time.Sleep(time.Minute)
		return f.Close()
	}
	for i := 0; ; i++ {
		if _, err := s.Create(context.Background(), fmt.Sprintf("v%d", i), size); err != nil {
			return err
		}
		fmt.Println("made")
	}
}

// other starts such a process and returns when it has said something.
func other(t *testing.T, role string, s Store) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(os.Args[0], s.Layout.Dir)
	cmd.Env, cmd.Stderr = append(os.Environ(), roleVar+"="+role), os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { kill(cmd) })
	if _, err := bufio.NewReader(out).ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	return cmd
}

func kill(cmd *exec.Cmd) {
	cmd.Process.Kill()
	cmd.Wait()
}

const size = 16 << 20

func newStore(t *testing.T) Store { return Store{store.Layout{Dir: t.TempDir()}} }

func create(t *testing.T, s Store, name string) {
	t.Helper()
	if _, err := s.Create(t.Context(), name, size); err != nil {
		t.Fatal(err)
	}
}

func noUsers() error { return nil }

func wantCode(t *testing.T, err error, code api.Code) {
	t.Helper()
	if !api.HasCode(err, code) {
		t.Errorf("got %v, want %s", err, code)
	}
}

func TestLifeOfVolume(t *testing.T) {
	s := newStore(t)
	create(t, s, "data")
	_, err := s.Create(t.Context(), "data", size)
	wantCode(t, err, api.ErrVolumeExists)
	v, made, err := s.Ensure(t.Context(), "data", 2*size)
	if err != nil || made || v.Name != "data" || v.Size != size || v.Used <= 0 || v.Used > size || time.Since(v.CreatedAt) > time.Minute {
		t.Errorf("got %+v, %v", v, err)
	}
	create(t, s, "a.b_c-1")
	volumes, broken, err := s.List()
	if err != nil || len(broken) > 0 || len(volumes) != 2 || volumes[0].Name != "a.b_c-1" || volumes[1] != v {
		t.Errorf("got %+v, %v, %v", volumes, broken, err)
	}
	objection := errors.New("it is needed")
	if err := s.Remove(t.Context(), "data", func() error { return objection }); !errors.Is(err, objection) {
		t.Errorf("removed in spite of an objection: %v", err)
	}
	if err := s.Remove(t.Context(), "data", noUsers); err != nil {
		t.Fatal(err)
	}
	wantCode(t, s.Remove(t.Context(), "data", noUsers), api.ErrVolumeNotFound)
	_, err = s.Get("data")
	wantCode(t, err, api.ErrVolumeNotFound)
	_, err = s.Open("data", true)
	wantCode(t, err, api.ErrVolumeNotFound)
	left, err := os.ReadDir(s.Layout.Tmp())
	if err != nil || len(left) > 0 {
		t.Errorf("%v is left, %v", left, err)
	}
}

func TestNamesThatArePaths(t *testing.T) {
	s := newStore(t)
	for _, name := range []string{"", ".", "..", "../data", "a/b", "-a", ".a"} {
		_, err := s.Get(name)
		wantCode(t, err, api.ErrVolumeNotFound)
		wantCode(t, s.Remove(t.Context(), name, noUsers), api.ErrVolumeNotFound)
	}
}

// Several make the same volume at a time, and one of them does.
func TestEnsureAtOnce(t *testing.T) {
	s := newStore(t)
	var all sync.WaitGroup
	var makers atomic.Int32
	made := make([]Volume, 8)
	for i := range made {
		all.Go(func() {
			var first bool
			var err error
			if made[i], first, err = s.Ensure(t.Context(), "data", size); err != nil {
				t.Error(err)
			}
			if first {
				makers.Add(1)
			}
		})
	}
	all.Wait()
	if n := makers.Load(); n != 1 {
		t.Errorf("%d of them say that they made it", n)
	}
	for _, v := range made {
		if v != made[0] {
			t.Errorf("got %+v and %+v", made[0], v)
		}
	}
}

func TestOneWriterOrManyReaders(t *testing.T) {
	s := newStore(t)
	create(t, s, "data")
	open := func(readOnly bool) *os.File {
		t.Helper()
		f, err := s.Open("data", readOnly)
		if err != nil {
			t.Fatal(err)
		}
		return f
	}
	held := func(readOnly bool) {
		t.Helper()
		if f, err := s.Open("data", readOnly); !errors.Is(err, ErrHeld) {
			t.Errorf("got %v, %v", f, err)
		}
	}
	writer := open(false)
	held(false)
	held(true)
	wantCode(t, s.Remove(t.Context(), "data", noUsers), api.ErrVolumeInUse)
	writer.Close()
	first, second := open(true), open(true)
	held(false)
	wantCode(t, s.Remove(t.Context(), "data", noUsers), api.ErrVolumeInUse)
	if _, err := first.WriteAt([]byte("x"), 0); err == nil {
		t.Error("a reader can write")
	}
	first.Close()
	held(false)
	second.Close()
	open(false).Close()
}

// Whoever dies lets go.
func TestHolderThatIsKilled(t *testing.T) {
	s := newStore(t)
	create(t, s, "data")
	holder := other(t, "hold", s)
	if _, err := s.Open("data", true); !errors.Is(err, ErrHeld) {
		t.Fatal(err)
	}
	kill(holder)
	f, err := s.Open("data", false)
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
}

// Whoever is killed while it makes a volume leaves a whole one or none.
func TestMakerThatIsKilled(t *testing.T) {
	for round := range 8 {
		s := newStore(t)
		maker := other(t, "make", s)
		time.Sleep(time.Duration(round) * 3 * time.Millisecond)
		kill(maker)
		entries, err := os.ReadDir(s.Layout.Volumes())
		if err != nil {
			t.Fatal(err)
		}
		volumes, broken, err := s.List()
		if err != nil || len(broken) > 0 || len(volumes) != len(entries) || len(volumes) == 0 {
			t.Errorf("of %d there are %d, broken %v, %v", len(entries), len(volumes), broken, err)
		}
		for _, v := range volumes {
			if v.Size != size {
				t.Errorf("%s has %d bytes", v.Name, v.Size)
			}
		}
		if _, err := scratch.Sweep(s.Layout.Tmp()); err != nil {
			t.Error(err)
		}
		if left, err := os.ReadDir(s.Layout.Tmp()); err != nil || len(left) > 0 {
			t.Errorf("%v is left, %v", left, err)
		}
	}
}

// What cannot be read is told of, does not hide the others, and can go.
func TestDamagedVolume(t *testing.T) {
	s := newStore(t)
	for _, name := range []string{"fine", "newer", "garbage", "nodisk"} {
		create(t, s, name)
	}
	for name, text := range map[string]string{"newer": `{"version":99}`, "garbage": "{"} {
		if err := os.WriteFile(s.metaPath(name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Remove(s.Path("nodisk")); err != nil {
		t.Fatal(err)
	}
	volumes, broken, err := s.List()
	if err != nil || len(volumes) != 1 || len(broken) != 2 || broken["newer"] == nil || broken["garbage"] == nil {
		t.Errorf("got %v, %v, %v", volumes, broken, err)
	}
	for _, name := range []string{"fine", "newer", "garbage", "nodisk"} {
		if err := s.Remove(t.Context(), name, noUsers); err != nil {
			t.Error(err)
		}
		if _, err := os.Stat(filepath.Join(s.Layout.Volumes(), name)); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s is still there: %v", name, err)
		}
	}
}

func TestSizes(t *testing.T) {
	s := newStore(t)
	for _, bytes := range []int64{0, -1, size - 4096, size + 1, 17 << 40} {
		_, err := s.Create(t.Context(), "data", bytes)
		wantCode(t, err, api.ErrValidationDiskSize)
	}
}
