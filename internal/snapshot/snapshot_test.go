package snapshot

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/vmsan/vmsan/api"
	"github.com/vmsan/vmsan/internal/scratch"
	"github.com/vmsan/vmsan/internal/testenv"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv(makerVar); dir != "" {
		beMaker(dir)
	}
	os.Exit(testenv.Main(m))
}

func newStore(t testing.TB) Store {
	t.Helper()
	dir := t.TempDir()
	return Store{Dir: filepath.Join(dir, "snapshots"), Tmp: filepath.Join(dir, "tmp")}
}

// example is a manifest as its maker fills it in.
func example() Manifest {
	return Manifest{
		Name: "one", SourceID: "vmabcdefghij", SourceName: "web",
		Host: Host{
			Driver: "qemu", VMMVersion: "7.2.22", Accelerator: "tcg", CPU: "max", TSCkHz: 2_500_000,
			Kernel: strings.Repeat("1", 64), Agent: strings.Repeat("2", 64),
		},
		Image: strings.Repeat("3", 64), ImageName: "debian",
		VCPUs: 2, MemoryMiB: 1, DiskBytes: 1<<20 + 4096,
		Policy: json.RawMessage(`{"mode":"deny-all"}`), Guest: json.RawMessage(`{"hostname":"web"}`),
	}
}

// sameJSON compares it however it is spaced.
var sameJSON = cmp.Comparer(func(a, b json.RawMessage) bool {
	var x, y bytes.Buffer
	return json.Compact(&x, a) == nil && json.Compact(&y, b) == nil && x.String() == y.String()
})

// content is what the example's files have: little, far apart, and not up to
// a chunk's end.
func content() map[string][]byte {
	m := example()
	files := map[string][]byte{
		MemoryFile: make([]byte, m.MemoryMiB<<20), OverlayFile: make([]byte, m.DiskBytes), StateFile: bytes.Repeat([]byte("state"), 1000),
	}
	copy(files[MemoryFile][5:], "hello")
	copy(files[MemoryFile][600_000:], bytes.Repeat([]byte("memory"), 20_000))
	files[OverlayFile][len(files[OverlayFile])-1] = 1
	return files
}

// fill writes the example's files.
func fill(t testing.TB, d *Draft) {
	t.Helper()
	for name, text := range content() {
		if err := os.WriteFile(d.Path(name), text, 0o600); err != nil {
			t.Fatal(err)
		}
		d.Done(t.Context(), name)
	}
}

func publish(t testing.TB, s Store, m Manifest) Manifest {
	t.Helper()
	d, err := s.New()
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	fill(t, d)
	if m, err = d.Publish(t.Context(), m); err != nil {
		t.Fatal(err)
	}
	return m
}

// checkEmpty fails t if anything is listed or left over.
func checkEmpty(t testing.TB, s Store) {
	t.Helper()
	for _, dir := range []string{s.Dir, s.Tmp} {
		entries, err := os.ReadDir(dir)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Error(err)
		}
		for _, e := range entries {
			t.Errorf("%s is left in %s", e.Name(), filepath.Base(dir))
		}
	}
}

func TestPublish(t *testing.T) {
	s := newStore(t)
	before := time.Now()
	m := publish(t, s, example())
	if !ValidID(m.ID) || m.CreatedAt.Before(before.Add(-time.Second)) {
		t.Errorf("got id %q, time %s", m.ID, m.CreatedAt)
	}
	if f := m.Files[MemoryFile]; f.Size != 1<<20 || f.Stored != 3*Chunk {
		t.Errorf("got memory %+v", f)
	}
	if f := m.Files[OverlayFile]; f.Size != 1<<20+4096 || f.Stored != 4096 {
		t.Errorf("got disk %+v", f)
	}
	open, err := s.Open(m.ID)
	if err != nil {
		t.Fatal(err)
	}
	defer open.Close()
	if diff := cmp.Diff(open.Manifest, m, sameJSON); diff != "" {
		t.Errorf("got the first, want the second:\n%s", diff)
	}
	for name, file := range open.files() {
		got := make([]byte, m.Files[name].Size)
		if _, err := (*file).ReadAt(got, 0); err != nil || !bytes.Equal(got, content()[name]) {
			t.Errorf("%s differs, %v", name, err)
		}
	}
	if err := s.Verify(t.Context(), m.ID); err != nil {
		t.Error(err)
	}
	for _, dir := range []string{s.Dir, s.path(m.ID)} {
		if info, err := os.Stat(dir); err != nil || info.Mode().Perm() != 0o700 {
			t.Errorf("%s: %v, %v", dir, info.Mode(), err)
		}
	}
}

// What is not published is not there, and leaves nothing.
func TestDraftGivenUp(t *testing.T) {
	s := newStore(t)
	d, err := s.New()
	if err != nil {
		t.Fatal(err)
	}
	fill(t, d)
	if list, _, err := s.List(); err != nil || len(list) > 0 {
		t.Errorf("a draft is listed: %v, %v", list, err)
	}
	for range 2 {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	}
	checkEmpty(t, s)
}

func TestPublishRefuses(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*Manifest)
		spoil  func(*Draft)
		code   api.Code
	}{
		"a name that is a path": {change: func(m *Manifest) { m.Name = "../x" }},
		"a name like an id":     {change: func(m *Manifest) { m.Name = "snabcdefghij" }},
		"another memory":        {change: func(m *Manifest) { m.MemoryMiB = 2 }},
		"another disk":          {change: func(m *Manifest) { m.DiskBytes = 4096 }},
		"no image":              {change: func(m *Manifest) { m.Image = "" }},
		"a file that is gone":   {spoil: func(d *Draft) { os.Remove(d.Path(StateFile)); d.Done(context.Background(), StateFile) }},
		"a name that is taken":  {change: func(m *Manifest) { m.Name = "taken" }, code: api.ErrSnapshotNameTaken},
	} {
		t.Run(name, func(t *testing.T) {
			s := newStore(t)
			taken := example()
			taken.Name = "taken"
			taken = publish(t, s, taken)
			d, err := s.New()
			if err != nil {
				t.Fatal(err)
			}
			fill(t, d)
			m := example()
			if c.change != nil {
				c.change(&m)
			}
			if c.spoil != nil {
				c.spoil(d)
			}
			if _, err := d.Publish(t.Context(), m); err == nil || c.code != "" && !api.HasCode(err, c.code) {
				t.Errorf("got %v, want an error %s", err, c.code)
			}
			d.Close()
			if err := s.Delete(t.Context(), taken.ID, nil); err != nil {
				t.Error(err)
			}
			checkEmpty(t, s)
		})
	}
}

// Of many that want a name at once, one gets it.
func TestPublishSameName(t *testing.T) {
	s := newStore(t)
	var all errgroup.Group
	var published [8]bool
	for i := range published {
		all.Go(func() error {
			d, err := s.New()
			if err != nil {
				return err
			}
			defer d.Close()
			fill(t, d)
			_, err = d.Publish(t.Context(), example())
			published[i] = err == nil
			if err != nil && !api.HasCode(err, api.ErrSnapshotNameTaken) {
				return err
			}
			return nil
		})
	}
	if err := all.Wait(); err != nil {
		t.Fatal(err)
	}
	if list, _, err := s.List(); err != nil || len(list) != 1 {
		t.Errorf("got %d snapshots, %v", len(list), err)
	}
}

func TestGet(t *testing.T) {
	s := newStore(t)
	var ids []string
	for _, name := range []string{"one", "two", ""} {
		m := example()
		m.Name = name
		ids = append(ids, publish(t, s, m).ID)
	}
	for ref, want := range map[string]string{"one": ids[0], "two": ids[1], ids[2]: ids[2], ids[1][:9]: ids[1]} {
		if m, err := s.Get(ref); err != nil || m.ID != want {
			t.Errorf("%s: got %s, %v; want %s", ref, m.ID, err, want)
		}
	}
	for ref, code := range map[string]api.Code{
		"sn": api.ErrSnapshotAmbiguous, "": api.ErrSnapshotNotFound, "nothing": api.ErrSnapshotNotFound,
		"../snapshots": api.ErrSnapshotNotFound, "/": api.ErrSnapshotNotFound, "snabcdefghij": api.ErrSnapshotNotFound,
		"x\x00": api.ErrSnapshotNotFound,
	} {
		if _, err := s.Get(ref); !api.HasCode(err, code) {
			t.Errorf("%q: got %v, want %s", ref, err, code)
		}
	}
	list, broken, err := s.List()
	if err != nil || len(broken) > 0 || len(list) != 3 || list[0].ID != ids[0] || list[2].ID != ids[2] {
		t.Errorf("got %v, %v, %v", list, broken, err)
	}
}

func TestDelete(t *testing.T) {
	s := newStore(t)
	m := publish(t, s, example())
	open, err := s.Open(m.ID)
	if err != nil {
		t.Fatal(err)
	}
	defer open.Close()
	busy := errors.New("busy")
	if err := s.Delete(t.Context(), m.ID, func() error { return busy }); !errors.Is(err, busy) {
		t.Errorf("got %v, want that it is busy", err)
	}
	if err := s.Verify(t.Context(), m.ID); err != nil {
		t.Errorf("after a refusal: %v", err)
	}
	for range 2 {
		if err := s.Delete(t.Context(), m.ID, nil); err != nil {
			t.Error(err)
		}
	}
	checkEmpty(t, s)
	// What is open stays whole.
	if f, err := digest(t.Context(), open.Memory); err != nil || f != m.Files[MemoryFile] {
		t.Errorf("the open memory is %+v, %v", f, err)
	}
	if err := s.Delete(t.Context(), "../x", nil); !api.HasCode(err, api.ErrSnapshotNotFound) {
		t.Errorf("got %v for a path", err)
	}
}

// A snapshot that something happened to is found out, does not keep others
// from being listed, and can be deleted.
func TestDamage(t *testing.T) {
	rewrite := func(text string) func(t *testing.T, path string) {
		return func(t *testing.T, path string) {
			os.Chmod(path, 0o600)
			if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	for name, c := range map[string]struct {
		file   string
		damage func(t *testing.T, path string)
		opens  bool // it takes the digests to find out
	}{
		"no manifest":       {file: manifestFile, damage: func(_ *testing.T, path string) { os.Remove(path) }},
		"empty manifest":    {file: manifestFile, damage: rewrite("")},
		"no JSON":           {file: manifestFile, damage: rewrite("{")},
		"newer manifest":    {file: manifestFile, damage: rewrite(`{"format": 2}`)},
		"endless manifest":  {file: manifestFile, damage: rewrite(strings.Repeat(" ", maxManifest+1))},
		"no memory":         {file: MemoryFile, damage: func(_ *testing.T, path string) { os.Remove(path) }},
		"half a state":      {file: StateFile, damage: func(_ *testing.T, path string) { os.Truncate(path, 100) }},
		"a link for a file": {file: StateFile, damage: func(_ *testing.T, path string) { os.Remove(path); os.Symlink("/etc/passwd", path) }},
		"a pipe for a file": {file: manifestFile, damage: func(_ *testing.T, path string) { os.Remove(path); unix.Mkfifo(path, 0o600) }},
		"other memory": {file: MemoryFile, opens: true, damage: func(t *testing.T, path string) {
			os.Chmod(path, 0o600)
			f, err := os.OpenFile(path, os.O_WRONLY, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			if _, err := f.WriteAt([]byte{1}, 300_000); err != nil {
				t.Fatal(err)
			}
		}},
	} {
		t.Run(name, func(t *testing.T) {
			s := newStore(t)
			good := publish(t, s, example())
			m := example()
			m.Name = ""
			id := publish(t, s, m).ID
			c.damage(t, filepath.Join(s.path(id), c.file))
			open, err := s.Open(id)
			if err == nil {
				open.Close()
			}
			if c.opens != (err == nil) || err != nil && !api.HasCode(err, api.ErrSnapshotCorrupt) {
				t.Errorf("open: got %v", err)
			}
			if err := s.Verify(t.Context(), id); !api.HasCode(err, api.ErrSnapshotCorrupt) {
				t.Errorf("verify: got %v, want that it is damaged", err)
			}
			if err := s.Export(t.Context(), id, &bytes.Buffer{}); !api.HasCode(err, api.ErrSnapshotCorrupt) {
				t.Errorf("export: got %v, want that it is damaged", err)
			}
			list, _, err := s.List()
			if err != nil || len(list) == 0 || list[0].ID != good.ID {
				t.Errorf("list: got %v, %v", list, err)
			}
			if err := s.Delete(t.Context(), id, nil); err != nil {
				t.Errorf("delete: %v", err)
			}
		})
	}
}

func TestFits(t *testing.T) {
	m := example()
	m.ID = "snabcdefghij"
	here := m.Host
	here.Agent = "another"
	here.TSCkHz += here.TSCkHz / 1000
	if err := m.Fits(here); err != nil {
		t.Errorf("got %v", err)
	}
	for want, change := range map[string]func(*Host){
		`version of qemu was "7.2.22" there and is "9.0" here`:                     func(h *Host) { h.VMMVersion = "9.0" },
		`the accelerator was "tcg" there and is "kvm" here`:                        func(h *Host) { h.Accelerator = "kvm" },
		`the CPU was "max" there and is "other" here`:                              func(h *Host) { h.CPU = "other" },
		`the guest's kernel was`:                                                   func(h *Host) { h.Kernel = "" },
		`the driver was "qemu" there and is "firecracker" here`:                    func(h *Host) { h.Driver = "firecracker" },
		`time stamp counter ran at 2500000 kHz there and runs at 2600000 kHz here`: func(h *Host) { h.TSCkHz = 2_600_000 },
		`time stamp counter ran at 2500000 kHz there and runs at 0 kHz here`:       func(h *Host) { h.TSCkHz = 0 },
	} {
		here := m.Host
		change(&here)
		if err := m.Fits(here); !api.HasCode(err, api.ErrSnapshotUnfit) || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %s", err, want)
		}
	}
}

// The digest is of what is in the file, wherever it has holes; it is written
// down here so that it stays what the documentation says.
func TestDigest(t *testing.T) {
	dir := t.TempDir()
	for i, punch := range []bool{false, true} {
		f, err := os.Create(filepath.Join(dir, fmt.Sprint(i)))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		text := make([]byte, 3*Chunk+5)
		copy(text[Chunk+10:], "data")
		copy(text[3*Chunk:], "tail!")
		if punch {
			err = errors.Join(f.Truncate(int64(len(text))), writePages(f, text[Chunk:2*Chunk], Chunk), writePages(f, text[3*Chunk:], 3*Chunk))
		} else {
			_, err = f.Write(text)
		}
		if err != nil {
			t.Fatal(err)
		}
		got, err := digest(t.Context(), f)
		if err != nil {
			t.Fatal(err)
		}
		want := File{
			Size: 3*Chunk + 5, Stored: Chunk + 5,
			Digest: "729d6d32477da39157575b0fe414e5790d318e6ad9e51728ea7804881692cbc0",
		}
		if got != want {
			t.Errorf("got %+v, want %+v", got, want)
		}
	}
}

func TestDigestCancelled(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "f"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	f.WriteString("x")
	gaveUp := errors.New("gave up")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(gaveUp)
	if _, err := digest(ctx, f); !errors.Is(err, gaveUp) {
		t.Errorf("got %v", err)
	}
}

func TestFullDisk(t *testing.T) {
	testenv.RequireRoot(t)
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=1m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	from := newStore(t)
	var archive bytes.Buffer
	if err := from.Export(t.Context(), publish(t, from, example()).ID, &archive); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "ballast"), make([]byte, 900<<10), 0o600); err != nil {
		t.Fatal(err)
	}
	s := Store{Dir: filepath.Join(dir, "snapshots"), Tmp: filepath.Join(dir, "tmp")}
	if _, err := s.Import(t.Context(), &archive, ""); !api.HasCode(err, api.ErrDiskFull) {
		t.Errorf("got %v, want that the disk is full", err)
	}
	checkEmpty(t, s)
}

// makerVar makes the test binary a maker of a snapshot that is going to be
// killed; it names the directory.
const makerVar = "VMSAN_TEST_SNAPSHOT_MAKER"

// beMaker has everything but the publishing done, says so, and waits.
func beMaker(dir string) {
	s := Store{Dir: filepath.Join(dir, "snapshots"), Tmp: filepath.Join(dir, "tmp")}
	d, err := s.New()
	if err != nil {
		panic(err)
	}
	for name, text := range content() {
		if err := os.WriteFile(d.Path(name), text, 0o600); err != nil {
			panic(err)
		}
		d.Done(context.Background(), name)
	}
	if _, err := d.wait(); err != nil {
		panic(err)
	}
	if err := d.writeManifest(example()); err != nil {
		panic(err)
	}
	fmt.Println("ready")
	select {}
}

// A maker that is killed leaves nothing that is listed, and what it leaves is
// found and removed.
func TestMakerKilled(t *testing.T) {
	s := newStore(t)
	maker := exec.Command(os.Args[0])
	maker.Env = append(os.Environ(), makerVar+"="+filepath.Dir(s.Tmp))
	out, err := maker.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := maker.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(out, make([]byte, len("ready"))); err != nil {
		t.Error(err)
	}
	maker.Process.Kill()
	maker.Wait()
	if list, broken, err := s.List(); err != nil || len(list)+len(broken) > 0 {
		t.Errorf("listed are %v, %v, %v", list, broken, err)
	}
	if swept, err := scratch.Sweep(s.Tmp); err != nil || len(swept) != 1 {
		t.Errorf("swept %v, %v", swept, err)
	}
	checkEmpty(t, s)
}
