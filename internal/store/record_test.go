package store

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/vmsan/vmsan/api"
)

// testLayout is a state directory of the test's own.
func testLayout(t testing.TB) Layout {
	t.Helper()
	dir := t.TempDir()
	l := Layout{Dir: filepath.Join(dir, "state"), Run: filepath.Join(dir, "run")}
	if err := l.Init(); err != nil {
		t.Fatal(err)
	}
	return l
}

// fullRecord is a record with every field set.
func fullRecord() *Record {
	at := time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC)
	return &Record{
		Name: "web", Project: "p", Labels: map[string]string{"a": "b"},
		Status: api.StatusRunning, Reason: "because",
		CreatedAt: at, StartedAt: at.Add(1), StoppedAt: at.Add(2),
		Spec: Spec{
			Image: "i", ImageName: "debian", Kernel: "k", Driver: "qemu", Accelerator: "tcg",
			VCPUs: 2, MemoryMiB: 256, DiskBytes: 1 << 30, Env: map[string]string{"A": "b\nc"}, Workdir: "/w", User: "u",
			Init: "/sbin/init", Network: "none", RequireKVM: true, NoSeccomp: true, NoCgroup: true, BootTimeout: time.Minute,
		},
		Ephemeral: true,
		Host: Host{
			Monitor: Process{PID: 1, StartTicks: 2}, VMM: Process{PID: 3, StartTicks: 4}, Gate: Process{PID: 5, StartTicks: 6},
			UID: 7, GateUID: 8, Cgroups: []string{"c"}, BootID: "boot",
		},
		Trace: []api.Stage{{Name: "s", Milliseconds: 1.5, Detail: "d"}},
	}
}

func allocate(t testing.TB, l Layout, r *Record) {
	t.Helper()
	lock, err := l.Allocate(t.Context(), r, anySlot)
	if err != nil {
		t.Fatal(err)
	}
	lock.Release()
}

// S1: what is saved is loaded; files are 0600 and directories 0700; a missing
// sandbox is not found; Delete may be repeated.
var comparePrefixes = cmpopts.EquateComparable(netip.Prefix{}, netip.AddrPort{})

func TestRecordRoundTrip(t *testing.T) {
	l := testLayout(t)
	want := fullRecord()
	allocate(t, l, want)
	got, err := l.Load(want.ID)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got, comparePrefixes); diff != "" {
		t.Errorf("(-saved +loaded):\n%s", diff)
	}
	checkMode(t, l.Record(want.ID), 0o600)
	checkMode(t, l.SandboxLock(want.ID), 0o600)
	checkMode(t, l.Sandbox(want.ID), os.ModeDir|0o700)
	checkMode(t, l.Sandboxes(), os.ModeDir|0o700)
	checkMode(t, l.Run, os.ModeDir|0o700)

	got.Status, got.Name = api.StatusStopped, "other"
	if err := l.Save(got); err != nil {
		t.Fatal(err)
	}
	checkMode(t, l.Record(want.ID), 0o600)
	records, broken, err := l.List()
	if err != nil || len(broken) > 0 {
		t.Fatal(err, broken)
	}
	if diff := cmp.Diff([]*Record{got}, records, comparePrefixes); diff != "" {
		t.Errorf("(-updated +listed):\n%s", diff)
	}

	for range 2 {
		if err := l.Delete(want.ID); err != nil {
			t.Errorf("delete: %v", err)
		}
	}
	if _, err := l.Load(want.ID); !api.HasCode(err, api.ErrVMNotFound) {
		t.Errorf("a deleted record is loaded with %v", err)
	}
	if err := l.Save(want); err == nil {
		t.Error("a deleted record was saved")
	}
	if left, _ := os.ReadDir(l.Tmp()); len(left) > 0 {
		t.Errorf("delete left %v", left)
	}
}

func checkMode(t *testing.T, path string, want os.FileMode) {
	t.Helper()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if info.Mode() != want {
		t.Errorf("%s has mode %v, want %v", path, info.Mode(), want)
	}
}

// S3: an older record, also one without a version, is read with defaults for
// what it lacks, and keeps what it has.
func TestRecordMigration(t *testing.T) {
	r, err := ParseRecord([]byte(`{"id":"vm0123456789","name":"old","status":"stopped","slot":3,"spec":{"vcpus":2}}`))
	if err != nil {
		t.Fatal(err)
	}
	want := &Record{
		Version: recordVersion, ID: "vm0123456789", Name: "old", Status: api.StatusStopped, Slot: 3,
		Spec: Spec{VCPUs: 2, Network: "none", Driver: "qemu"},
	}
	if diff := cmp.Diff(want, r, comparePrefixes); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestRecordRefused(t *testing.T) {
	for _, test := range []struct{ record, why string }{
		{``, "unexpected end"},
		{`{`, "unexpected end"},
		{`[]`, "cannot unmarshal"},
		{`{"version":2,"id":"vm0123456789","status":"stopped"}`, "newer vmsan"},
		{`{"version":-1,"id":"vm0123456789","status":"stopped"}`, "version -1"},
		{`{"version":1,"id":"../../etc/xx","status":"stopped"}`, "id"},
		{`{"version":1,"id":"vm0123456789","status":"asleep"}`, "status"},
		{`{"version":1,"id":"vm0123456789","status":"stopped","slot":32768}`, "slot"},
		{`{"version":1,"id":"vm0123456789","status":"stopped","slot":-1}`, "slot"},
		{`{"a":"` + strings.Repeat("x", maxRecord) + `"}`, "larger"},
	} {
		if _, err := ParseRecord([]byte(test.record)); err == nil || !strings.Contains(err.Error(), test.why) {
			t.Errorf("ParseRecord(%.60q) = %v, want an error with %q", test.record, err, test.why)
		}
	}
}

func FuzzParseRecord(f *testing.F) {
	full := fullRecord()
	full.ID = "vm0123456789"
	raw, err := json.Marshal(full)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(raw)
	f.Add([]byte(`{"id":"vm0123456789","status":"stopped"}`))
	f.Add([]byte(`{"version":2}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		r, err := ParseRecord(raw)
		if err != nil {
			return
		}
		if !ValidID(r.ID) || !r.Status.Valid() || r.Version != recordVersion || r.Slot < 0 || r.Slot >= Slots {
			t.Fatalf("accepted %+v", r)
		}
		again, err := json.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		if len(again) > maxRecord {
			return
		}
		if _, err := ParseRecord(again); err != nil {
			t.Fatalf("what was accepted is refused when written: %v", err)
		}
	})
}

// A record that cannot be read does not keep the others from being listed,
// found, or numbered.
func TestCorruptRecord(t *testing.T) {
	l := testLayout(t)
	good := &Record{Name: "good", Status: api.StatusStopped}
	allocate(t, l, good)
	const bad, newer, swapped = "vm0badbadbad", "vm0newnewnew", "vm0swapped00"
	for id, text := range map[string]string{
		bad:     "{",
		newer:   `{"version":99,"id":"` + newer + `","status":"stopped"}`,
		swapped: `{"version":1,"id":"` + bad + `","status":"stopped"}`,
	} {
		if err := os.Mkdir(l.Sandbox(id), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(l.Record(id), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	records, broken, err := l.List()
	if err != nil {
		t.Fatal(err)
	}
	if len(records) != 1 || records[0].ID != good.ID {
		t.Errorf("listed %v", records)
	}
	for _, id := range []string{bad, newer, swapped} {
		if !api.HasCode(broken[id], api.ErrVMRecord) {
			t.Errorf("%s: %v", id, broken[id])
		}
	}
	if id, err := l.Find("vm0bad"); id != bad {
		t.Errorf("Find(vm0bad) = %q, %v", id, err)
	}
	allocate(t, l, &Record{Name: "next", Status: api.StatusStopped})
}

func TestFind(t *testing.T) {
	l := testLayout(t)
	for _, r := range []*Record{
		{ID: "vmaaaaaaaaaa", Name: "web"},
		{ID: "vmaabbbbbbbb", Name: "vmaaa"},
		{ID: "vmcccccccccc", Slot: 2},
	} {
		r.Status = api.StatusStopped
		if err := os.Mkdir(l.Sandbox(r.ID), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := l.Save(r); err != nil {
			t.Fatal(err)
		}
	}
	for ref, want := range map[string]string{
		"vmaaaaaaaaaa": "vmaaaaaaaaaa",
		"web":          "vmaaaaaaaaaa",
		"vmc":          "vmcccccccccc",
		"vmaaaa":       "vmaaaaaaaaaa",
		"vmaaa":        "vmaabbbbbbbb", // a name goes before the beginning of an id
	} {
		if got, err := l.Find(ref); got != want {
			t.Errorf("Find(%q) = %q, %v, want %q", ref, got, err, want)
		}
	}
	for ref, code := range map[string]api.Code{
		"vmaa": api.ErrVMAmbiguous, "vm": api.ErrVMAmbiguous,
		"we": api.ErrVMNotFound, "vmx": api.ErrVMNotFound, "vmdddddddddd": api.ErrVMNotFound,
		"": api.ErrVMNotFound, "..": api.ErrVMNotFound, "../vmaaaaaaaaaa": api.ErrVMNotFound,
		"vmaaaaaaaaaa/": api.ErrVMNotFound, "a\nb": api.ErrVMNotFound, "$(id)": api.ErrVMNotFound,
	} {
		if got, err := l.Find(ref); !api.HasCode(err, code) {
			t.Errorf("Find(%q) = %q, %v, want %s", ref, got, err, code)
		}
	}
}

// BenchmarkList1000 reads as many records as vmsan list may have to.
func BenchmarkList1000(b *testing.B) {
	l := testLayout(b)
	for i := range 1000 {
		r := fullRecord()
		r.ID, r.Name, r.Slot = fmt.Sprintf("vm%010d", i), fmt.Sprintf("name%d", i), i
		if err := os.Mkdir(l.Sandbox(r.ID), 0o700); err != nil {
			b.Fatal(err)
		}
		raw, err := json.Marshal(r)
		if err != nil {
			b.Fatal(err)
		}
		if err := os.WriteFile(l.Record(r.ID), raw, 0o600); err != nil {
			b.Fatal(err)
		}
	}
	for b.Loop() {
		if records, _, err := l.List(); err != nil || len(records) != 1000 {
			b.Fatal(len(records), err)
		}
	}
}
