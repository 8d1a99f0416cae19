package sandbox

import (
	"os/exec"
	"strings"
	"testing"

	"github.com/vmsan/vmsan/api"
	"github.com/vmsan/vmsan/internal/store"
	"github.com/vmsan/vmsan/internal/testenv"
)

func TestParseVolume(t *testing.T) {
	for text, want := range map[string]store.Mount{
		"data:/srv":             {Volume: "data", Path: "/srv"},
		"data:/srv:rw":          {Volume: "data", Path: "/srv"},
		"a.b-c_1:/srv/x y/z:ro": {Volume: "a.b-c_1", Path: "/srv/x y/z", ReadOnly: true},
		"data:/process":         {Volume: "data", Path: "/process"},
		"data:/run/data":        {Volume: "data", Path: "/run/data"},
		"data:/srv/":            {Volume: "data", Path: "/srv/"},
	} {
		if got, err := ParseVolume(text); got != want || err != nil {
			t.Errorf("ParseVolume(%q) = %+v, %v", text, got, err)
		}
	}
	for code, texts := range map[api.Code][]string{
		api.ErrValidationVolume: {"", "data", "data:/srv:", "data:/srv:RO", "data:/srv:ro:rw", "data:/srv:r", "data:/a:b"},
		api.ErrValidationName:   {":/srv", "-x:/srv", "../x:/srv", "/host/dir:/srv", ".:/srv", "a b:/srv", strings.Repeat("x", 64) + ":/srv"},
		api.ErrValidationPath: {
			"data:", "data:srv", "data:./srv", "data:/", "data://", "data:/srv/../etc", "data:/srv/./x", "data://srv", "data:/srv//",
			"data:/proc", "data:/proc/", "data:/proc/1", "data:/sys/fs", "data:/dev", "data:/dev/shm", "data:/run", "data:/run/",
			"data:/a\x00b", "data:/" + strings.Repeat("x", maxMountDir),
		},
	} {
		for _, text := range texts {
			_, err := ParseVolume(text)
			if e := api.AsError(orNone(err)); e.Code != code || e.Flag != "--volume" {
				t.Errorf("%.80q is answered with %s (%s): %s", text, e.Code, e.Flag, e.Message)
			}
		}
	}
}

func TestCheckVolumes(t *testing.T) {
	mounts := func(texts ...string) (all []store.Mount) {
		for _, text := range texts {
			m, err := ParseVolume(text)
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, m)
		}
		return all
	}
	o := CreateOptions{Volumes: mounts("a:/srv", "b:/srv/in/", "c:/mnt:ro")}
	if err := o.complete(); err != nil || !o.Cold || o.Volumes[1].Path != "/srv/in" {
		t.Errorf("got %+v, %v", o.Volumes, err)
	}
	for _, refused := range [][]string{
		{"a:/srv", "a:/mnt"}, {"a:/srv:ro", "a:/mnt:ro"}, {"a:/srv", "b:/srv"}, {"a:/srv", "b:/srv/"},
		{"a:/a", "b:/b", "c:/c", "d:/d", "e:/e", "f:/f"},
	} {
		o := CreateOptions{Volumes: mounts(refused...)}
		if err := o.Check(); !api.HasCode(err, api.ErrValidationVolume) {
			t.Errorf("%q: %v", refused, err)
		}
	}
	o = CreateOptions{Volumes: mounts("a:/srv"), Snapshot: "s"}
	if err := o.Check(); !api.HasCode(err, api.ErrValidationFlags) {
		t.Errorf("with a snapshot: %v", err)
	}
}

// TestEndDeadHolders: a VMM that outlived its monitor is ended before anybody
// else gets its volume, and one that has another volume is let be.
func TestEndDeadHolders(t *testing.T) {
	testenv.RequireRoot(t)
	s := testService(t)
	started := func(volume string) (*exec.Cmd, *store.Record) {
		vmm := exec.Command("sleep", "1000")
		if err := vmm.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			vmm.Process.Kill()
			vmm.Wait()
		})
		return vmm, s.died(t, func(r *store.Record) {
			r.Spec.Volumes = []store.Mount{{Volume: volume, Path: "/srv"}}
			r.Host.VMM = store.ProcessOf(vmm.Process.Pid)
		})
	}
	holder, held := started("data")
	_, other := started("another")
	next := &store.Record{ID: "vm0123456789", Spec: store.Spec{Volumes: held.Spec.Volumes}}
	if err := s.endDeadHolders(t.Context(), next); err != nil {
		t.Fatal(err)
	}
	if err := holder.Wait(); err == nil || !strings.Contains(err.Error(), "killed") {
		t.Errorf("the holder ended with %v", err)
	}
	for r, want := range map[*store.Record]api.Status{held: api.StatusStopped, other: api.StatusRunning} {
		if got, err := s.layout.Load(r.ID); err != nil || got.Status != want {
			t.Errorf("%s is %s, %v, want %s", r.ID, got.Status, err, want)
		}
	}
}
