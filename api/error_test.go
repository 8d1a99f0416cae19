package api

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// E1: an error's JSON has code, message, hint and what it is about, and its
// message all that was said on the way up.
func TestErrorJSON(t *testing.T) {
	cause := Errorf(ErrVMNotRunning, "VM %s is not running", "vm1").WithVM("vm1").WithHint("vmsan start %s", "vm1").
		WithFlag("--flag")
	got, err := json.Marshal(AsError(fmt.Errorf("copy file: %w", cause)))
	if err != nil {
		t.Fatal(err)
	}
	want := `{"code":"ERR_VM_NOT_RUNNING","message":"copy file: VM vm1 is not running","hint":"vmsan start vm1","flag":"--flag","vm":"vm1"}`
	if diff := cmp.Diff(want, string(got)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if cause.Message != "VM vm1 is not running" {
		t.Errorf("AsError changed the original: %s", cause.Message)
	}
}

func TestErrorChain(t *testing.T) {
	err := fmt.Errorf("outer: %w", Errorf(ErrDiskFull, "write: %w", fs.ErrPermission))
	if !HasCode(err, ErrDiskFull) || HasCode(err, ErrTimeout) {
		t.Error("HasCode does not find the code")
	}
	if !errors.Is(err, fs.ErrPermission) {
		t.Error("the cause is lost")
	}
	if got := AsError(errors.New("plain")); got.Code != ErrInternal || got.Message != "plain" {
		t.Errorf("plain error becomes %+v", got)
	}
}

func TestOutput(t *testing.T) {
	for _, test := range []struct {
		data []byte
		want Output
	}{
		{nil, Output{}},
		{[]byte("text\n"), Output{Text: "text\n"}},
		{[]byte("a\x00b"), Output{Text: "a\x00b"}},
		{[]byte{0xff}, Output{Base64: "/w=="}},
	} {
		if got := NewOutput(test.data); got != test.want {
			t.Errorf("NewOutput(%q) = %+v, want %+v", test.data, got, test.want)
		}
	}
}

// TestVMJSON is the shape of a sandbox that scripts rely on.
func TestVMJSON(t *testing.T) {
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	got, err := json.MarshalIndent(VM{
		ID: "vm0123456789", Name: "web", Labels: map[string]string{"a": "b"}, Status: StatusRunning,
		CreatedAt: at, StartedAt: &at, Image: "debian", ImageDigest: "d", Kernel: "k", Driver: "qemu", Accelerator: "tcg",
		VCPUs: 1, MemoryMiB: 256, DiskBytes: 1 << 30, Network: "none",
		Isolation: &Isolation{Boundary: "emulation", Seccomp: true, Cgroup: true, UID: 7, Namespaces: true, PIDNamespace: true},
		PIDs:      &PIDs{Monitor: 1, VMM: 2, Gate: 3},
		Trace:     []Stage{{Name: "vmm", Milliseconds: 1.5, Detail: "tcg"}},
	}, "", " ")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(vmGolden, string(got)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

const vmGolden = `{
 "id": "vm0123456789",
 "name": "web",
 "labels": {
  "a": "b"
 },
 "status": "running",
 "createdAt": "2026-01-02T03:04:05Z",
 "startedAt": "2026-01-02T03:04:05Z",
 "image": "debian",
 "imageDigest": "d",
 "kernel": "k",
 "driver": "qemu",
 "accelerator": "tcg",
 "vcpus": 1,
 "memoryMiB": 256,
 "diskBytes": 1073741824,
 "network": "none",
 "isolation": {
  "boundary": "emulation",
  "seccomp": true,
  "cgroup": true,
  "uid": 7,
  "namespaces": true,
  "pidNamespace": true
 },
 "pids": {
  "monitor": 1,
  "vmm": 2,
  "gate": 3
 },
 "trace": [
  {
   "name": "vmm",
   "ms": 1.5,
   "detail": "tcg"
  }
 ]
}`
