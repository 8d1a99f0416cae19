package firecracker

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/vmsan/vmsan/internal/network"
	"github.com/vmsan/vmsan/internal/testenv"
	"github.com/vmsan/vmsan/internal/vmm"
)

// What is tested with real programs alone, as far as the host lets them come:
// most of it needs no KVM, and nothing a guest that comes up. TestConformanceKVM
// is for hosts where that does.

// realSpec has all that a sandbox can have.
func realSpec(t *testing.T) vmm.Spec {
	t.Helper()
	testenv.RequireFirecracker(t)
	spec := machineSpec(t, testenv.RequireMachine(t))
	name, namespace, err := network.LentBareTap(testUser.UID)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { namespace.Close() })
	spec.NIC = &vmm.NIC{Name: name, Namespace: namespace, MAC: net.HardwareAddr{2, 0, 0, 0, 0, 1}}
	return spec
}

// get asks the API for something.
func (vm *virtualMachine) get(t *testing.T, path string) (answer map[string]any) {
	t.Helper()
	response, err := vm.api.http.Get("http://localhost" + path)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err == nil {
		err = json.Unmarshal(text, &answer)
	}
	if err != nil || response.StatusCode != http.StatusOK {
		t.Fatalf("GET %s: %s, %s, %v", path, response.Status, text, err)
	}
	return answer
}

// TestRealConfiguration has each request accepted, and the machine that comes
// of them equal to what they say, field by field.
func TestRealConfiguration(t *testing.T) {
	spec := realSpec(t)
	requests := configuration(spec)
	vm, err := startWith(t, spec, requests)
	if err != nil {
		t.Fatal(err)
	}
	if got := vm.get(t, "/")["state"]; got != "Not started" {
		t.Errorf("it is %v", got)
	}
	version, err := Driver{}.Version(t.Context())
	if got := vm.get(t, "/version")["firecracker_version"]; err != nil || got != version {
		t.Errorf("it is %v, and says %s, %v", got, version, err)
	}
	config := vm.get(t, "/vm/config")
	for _, r := range requests {
		want := fields(t, r.body)
		if diff := cmp.Diff(part(config, r.path, want), want); diff != "" {
			t.Errorf("%s is what has -, we meant +:\n%s", r.path, diff)
		}
	}
}

// fields is what a request says.
func fields(t *testing.T, body any) (m map[string]any) {
	t.Helper()
	text, err := json.Marshal(body)
	if err == nil {
		err = json.Unmarshal(text, &m)
	}
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// part is what a machine's configuration has of a request's path, without what
// the request does not speak of.
func part(config map[string]any, path string, spoken map[string]any) map[string]any {
	kind, id, listed := strings.Cut(strings.TrimPrefix(path, "/"), "/")
	found, _ := config[kind].(map[string]any)
	if listed {
		all, _ := config[kind].([]any)
		i := slices.IndexFunc(all, func(one any) bool {
			m, _ := one.(map[string]any)
			return m["drive_id"] == id || m["iface_id"] == id
		})
		if i < 0 {
			return nil
		}
		found = all[i].(map[string]any)
	}
	for name := range found {
		if _, ok := spoken[name]; !ok {
			delete(found, name)
		}
	}
	return found
}

// TestRealRestore saves a machine and restores it, whatever its guest does.
func TestRealRestore(t *testing.T) {
	spec := realSpec(t)
	vm, err := startWith(t, spec, append(configuration(spec), instanceStart()))
	var fault *FaultError
	if errors.As(err, &fault) && fault.Path == "/actions" && strings.Contains(strings.ToLower(fault.Message), "kvm") {
		t.Logf("no KVM, and so no machine: %v", err)
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	if err := vm.Pause(t.Context()); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	saved := vmm.Saved{Memory: create(t, dir+"/memory"), State: create(t, dir+"/state")}
	if err := vm.Save(t.Context(), saved); err != nil {
		t.Fatal(err)
	}
	if err := vm.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	again := realSpec(t)
	restored, err := Driver{}.Restore(t.Context(), again, saved)
	if err != nil {
		t.Fatal(err)
	}
	defer restored.Stop(context.Background())
	if err := restored.Resume(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := restored.(*virtualMachine).get(t, "/")["state"]; got != "Running" {
		t.Errorf("it is %v", got)
	}
	if err := restored.Stop(t.Context()); err != nil || !restored.Exit().Clean {
		t.Errorf("it ended with %v, %v", restored.Exit(), err)
	}
}

// TestRealConsole is the guest's: Firecracker's own log is not in it.
func TestRealConsole(t *testing.T) {
	spec := realSpec(t)
	vm, err := startWith(t, spec, configuration(spec))
	if err != nil {
		t.Fatal(err)
	}
	console, err := vm.Link().Dup()
	if err != nil {
		t.Fatal(err)
	}
	defer console.Close()
	if err := vm.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	if text, err := io.ReadAll(console.Console); err != nil || len(bytes.TrimSpace(text)) > 0 {
		t.Errorf("the console has %q, %v", text, err)
	}
	if _, err := os.Stat(spec.Jail.Root + "/log"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the host has the log's pipe: %v", err)
	}
}
