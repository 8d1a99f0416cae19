package doctor

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vmsan/vmsan/api"
	"github.com/vmsan/vmsan/internal/image"
	"github.com/vmsan/vmsan/internal/kernel"
	"github.com/vmsan/vmsan/internal/setup"
	"github.com/vmsan/vmsan/internal/testenv"
)

// onReal is for a state directory that setup has filled.
func onReal(t *testing.T) (*Options, setup.Record) {
	t.Helper()
	o := options(t)
	o.Layout = testenv.RequireVM(t)
	if err := o.Layout.Init(); err != nil {
		t.Fatal(err)
	}
	r, err := setup.Load(o.Layout)
	if err != nil {
		t.Fatal(err)
	}
	k, err := kernel.Load(o.Layout, r.Kernel)
	if err != nil {
		t.Fatal(err)
	}
	o.Agent = k.AgentDigest
	return o, r
}

// damage changes one byte of a file, of which others have links.
func damage(t *testing.T, path string) {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	data[len(data)/2] ^= 1
	if err := os.WriteFile(path+".new", data, 0o444); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
}

func TestKernel(t *testing.T) {
	o, r := onReal(t)
	o.want(t, "kernel", api.HealthPass, "cloud", "")
	o.Agent = "another"
	o.want(t, "kernel", api.HealthFail, "agent of another vmsan", "vmsan setup")
	initramfs := kernel.InitramfsPath(o.Layout, r.Kernel)
	damage(t, initramfs)
	o.want(t, "kernel", api.HealthFail, initramfs+" is not what it was", "vmsan setup")
	if err := os.Remove(initramfs); err != nil {
		t.Fatal(err)
	}
	o.want(t, "kernel", api.HealthFail, "no such file", "vmsan setup")
	o.setUp(t, setup.Record{})
	o.want(t, "kernel", api.HealthFail, "no kernel is installed", "vmsan setup")
}

func TestImages(t *testing.T) {
	o, r := onReal(t)
	o.want(t, "images", api.HealthPass, "the default one among them", "")
	damage(t, image.Store{Layout: o.Layout}.RootfsPath(r.Image))
	o.want(t, "images", api.HealthFail, "is damaged", "vmsan setup")
	r.Image = ""
	o.setUp(t, r)
	o.want(t, "images", api.HealthFail, "is damaged", "vmsan image rm")
}

func TestRecords(t *testing.T) {
	o := options(t)
	o.want(t, "records", api.HealthPass, "all 0", "")
	const id = "vm0123456789"
	if err := os.Mkdir(o.Layout.Sandbox(id), 0o700); err != nil {
		t.Fatal(err)
	}
	o.want(t, "records", api.HealthWarn, "has no record", "rm -r "+o.Layout.Sandbox(id))
	if err := os.WriteFile(o.Layout.Record(id), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	o.want(t, "records", api.HealthWarn, "1 cannot be read", "vmsan rm -f "+id)
}

// on moves the state directory into a file system of its own.
func (o *Options) on(t *testing.T, flags uintptr, with string) {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("none", dir, "tmpfs", flags&^unix.MS_RDONLY, with); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	o.Layout.Dir = filepath.Join(dir, "state")
	if err := o.Layout.Init(); err != nil {
		t.Fatal(err)
	}
	if flags&unix.MS_RDONLY != 0 {
		if err := unix.Mount("", dir, "", unix.MS_REMOUNT|flags, with); err != nil {
			t.Fatal(err)
		}
	}
}

func TestState(t *testing.T) {
	o := options(t)
	o.want(t, "state", api.HealthPass, "belongs to this user", "")
	if err := os.Chmod(o.Layout.Dir, 0o777); err != nil {
		t.Fatal(err)
	}
	o.want(t, "state", api.HealthFail, "everybody may write", "chmod go-w "+o.Layout.Dir)
	o.Layout.Dir = filepath.Join(t.TempDir(), "not", "yet")
	o.want(t, "state", api.HealthPass, "not there yet", "")
	o.want(t, "clones", api.HealthPass, "not there yet", "")
	o.want(t, "space", api.HealthPass, "are free", "")
	if exists(o.Layout.Dir) {
		t.Error("looking has made it")
	}
	if err := os.MkdirAll(filepath.Join(o.Layout.Dir, "src"), 0o755); err != nil {
		t.Fatal(err)
	}
	o.want(t, "state", api.HealthFail, "is not a state directory", "choose another --dir")
	o.want(t, "clones", api.HealthPass, "not there yet", "")
	if exists(o.Layout.Tmp()) {
		t.Error("looking has made something in a directory of something else")
	}
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	o.Layout.Dir = file
	o.want(t, "state", api.HealthFail, "no directory", "--dir")
}

// TestStateMounts: D1, on file systems that are really mounted so; their
// siblings are not.
func TestStateMounts(t *testing.T) {
	testenv.RequireRoot(t)
	for _, c := range []struct {
		flags        uintptr
		status       api.Health
		says, remedy string
	}{
		{0, api.HealthPass, "", ""},
		{unix.MS_NODEV, api.HealthWarn, "nodev", "remount,dev"},
		{unix.MS_NOEXEC, api.HealthWarn, "noexec", "remount,exec"},
		{unix.MS_RDONLY, api.HealthFail, "read-only", "remount,rw"},
	} {
		o := options(t)
		o.on(t, c.flags, "")
		o.want(t, "state", c.status, c.says, c.remedy)
	}
	o := options(t)
	if err := os.Chown(o.Layout.Dir, 65534, 65534); err != nil {
		t.Fatal(err)
	}
	o.want(t, "state", api.HealthWarn, "belongs to user 65534", "chown")
}

func TestSpace(t *testing.T) {
	testenv.RequireRoot(t)
	o := options(t)
	for with, says := range map[string]string{
		"size=100m": "0.1 GiB are free", "size=8g,nr_inodes=500": "more files can be made",
	} {
		o.on(t, 0, with)
		o.want(t, "space", api.HealthFail, says, "prune")
	}
	o.on(t, 0, "size=2g")
	o.want(t, "space", api.HealthWarn, "2.0 GiB are free", "prune")
	o.on(t, 0, "size=8g")
	o.want(t, "space", api.HealthPass, "8.0 GiB are free", "")
	full := t.TempDir()
	if err := unix.Mount("none", full, "tmpfs", 0, "size=64k"); err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount(full, 0)
	o.Layout.Run = full
	o.want(t, "space", api.HealthFail, "where sockets are made, is full", "df")
}

func TestClones(t *testing.T) {
	o := options(t)
	o.want(t, "clones", api.HealthPass, "clones of disks", "")
	left, err := os.ReadDir(o.Layout.Tmp())
	if err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}
