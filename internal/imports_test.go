// Package internal_test holds the line between the packages: imports point
// down the picture in docs/architecture.md, never sideways.
package internal_test

import (
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/vmsan/vmsan/"

// allowed lists, for each package that has a rule, the packages of the
// project that it may import besides those below it in path.
var allowed = []struct {
	pkg     string
	imports []string
	reason  string
}{
	{"api", nil, "clients use it alone"},
	{"internal/link", nil, "both ends of the link share it, and the agent has to stay small"},
	{"internal/guest/wire", nil, "both ends of a command's stream share it, and the agent has to stay small"},
	{"internal/hooks", []string{"api", "internal/network", "internal/store"}, "it is told of records, and does nothing to sandboxes"},
	{"internal/config", []string{"api"}, "it is a format"},
	{"internal/cgroup", nil, "it knows processes and limits, not sandboxes"},
	{"internal/policy", nil, "it is data"},
	{"internal/network", []string{"internal/network/firewall", "internal/network/netns", "internal/policy", "internal/undo", "internal/fault"}, "it knows devices and rules, not records or machines"},
	{"internal/network/firewall", []string{"internal/policy"}, "it knows policies and names of devices"},
	{"internal/network/netns", nil, "it knows threads"},
	{"internal/undo", nil, "it is a data structure"},
	{"internal/fault", nil, "it is a mark in others' code"},
	{"internal/initramfs", nil, "it is a format"},
	{"internal/jail", []string{"internal/cgroup"}, "it knows processes, not sandboxes"},
	{"internal/policy", nil, "it is data, which all parts agree on"},
	{"internal/store", []string{"api", "internal/fault", "internal/policy", "internal/scratch"}, "everything stands on it"},
	{"internal/events", []string{"api", "internal/store"}, "everybody writes to it"},
	{"internal/scratch", []string{"api", "internal/fault"}, "everything that makes files stands on it"},
	{"internal/sparse", nil, "it is about files, whosever they are"},
	{"internal/outfile", []string{"api"}, "it is about files, whosever they are"},
	{"internal/disk", []string{"api", "internal/scratch", "internal/sparse", "internal/store"}, "disks, images and kernels do not know each other"},
	{"internal/ext4", nil, "it is a format"},
	{"internal/image", []string{"api", "internal/ext4", "internal/oci", "internal/scratch", "internal/store", "internal/fault"}, "disks, images and kernels do not know each other"},
	{"internal/oci", []string{"api"}, "it is a format"},
	{"internal/image/unpack", []string{"api", "internal/ext4"}, "what reads hostile archives has no file of the host but the one it fills"},
	{"internal/image/overlay", []string{"internal/ext4"}, "what reads a guest's disk has no file of the host but those it is given"},
	{"internal/registry", []string{"api", "internal/oci", "internal/scratch"}, "it gets blobs, and does not know what is made of them"},
	{"internal/kernel", []string{"api", "internal/scratch", "internal/store", "internal/initramfs"}, "disks, images and kernels do not know each other"},
	{"internal/filetree", nil, "both ends of a copy share it, and the agent has to stay small"},
	{"internal/timing", []string{"api"}, "it runs the program, and knows nothing of how that works"},
	{"internal/ignore", nil, "it is about names, whosever they are"},
	{"internal/agent", []string{"internal/filetree", "internal/link", "internal/guest/proto", "internal/guest/wire"}, "it runs in the guest, where nothing else of ours is"},
	{"internal/guest", []string{"api", "internal/filetree", "internal/guest/proto"}, "it is given streams and does not ask where they come from"},
	{"internal/vmm", []string{"internal/link", "internal/jail", "internal/cgroup"}, "a VMM knows nothing of sandboxes, records or images"},
	{"internal/snapshot", []string{"api", "internal/scratch", "internal/sparse", "internal/store", "internal/fault"}, "it keeps files, and does not know what a VMM does with them"},
	{"internal/vmm/qemu", []string{"internal/vmm", "internal/link", "internal/jail", "internal/sparse"}, "drivers know only the waist"},
	{"internal/vmm/firecracker", []string{"internal/vmm", "internal/link", "internal/jail", "internal/sparse"}, "drivers know only the waist"},
	{"internal/vmm/firecracker/release", []string{"api", "internal/outfile", "internal/scratch", "internal/vmm/firecracker"}, "it gets programs, and does not know what they run"},
	{"internal/gate", []string{"api", "internal/policy", "internal/link", "internal/guest", "internal/vmm", "internal/jail", "internal/cgroup"}, "it has no rights, so it needs no files or records"},
	{"internal/gate/resolver", []string{"api", "internal/policy", "internal/gate/sockets"}, "what reads hostile bytes knows nothing that it need not"},
	{"internal/gate/proxy", []string{"api", "internal/policy", "internal/gate/sockets"}, "what reads hostile bytes knows nothing that it need not"},
	{"internal/gate/ports", []string{"internal/policy", "internal/gate/sockets"}, "what reads hostile bytes knows nothing that it need not"},
	{"internal/gate/denials", []string{"api"}, "what reads hostile bytes knows nothing that it need not"},
	{"internal/gate/sockets", nil, "the gate's servers share it"},
	{"internal/gate/logfile", nil, "it knows files"},
	{"internal/doctor", []string{"api", "internal/cgroup", "internal/disk", "internal/image", "internal/kernel", "internal/network", "internal/scratch", "internal/setup", "internal/store"}, "it looks at what others made, and does nothing itself: the verbs are sandbox's"},
	{"internal/monitor/control", []string{"api", "internal/policy"}, "commands and monitors share it"},
}

type listed struct {
	ImportPath string
	Imports    []string
}

func TestImports(t *testing.T) {
	packages := list(t)
	for _, rule := range allowed {
		i := slices.IndexFunc(packages, func(p listed) bool { return p.ImportPath == module+rule.pkg })
		if i < 0 {
			t.Errorf("there is a rule for %s, which does not exist", rule.pkg)
			continue
		}
		for _, imported := range packages[i].Imports {
			ours, ok := strings.CutPrefix(imported, module)
			if ok && !strings.HasPrefix(ours, rule.pkg+"/") && !permits(rule.imports, ours) {
				t.Errorf("%s imports %s: %s", rule.pkg, ours, rule.reason)
			}
		}
	}
}

// permits tells whether one of the allowed packages is imported or has it
// below.
func permits(allowed []string, imported string) bool {
	return slices.ContainsFunc(allowed, func(a string) bool {
		return imported == a || strings.HasPrefix(imported, a+"/") && strings.HasSuffix(a, "/proto")
	})
}

func list(t *testing.T) (packages []listed) {
	t.Helper()
	out, err := exec.Command("go", "list", "-json=ImportPath,Imports", module+"...").Output()
	if err != nil {
		t.Fatalf("list packages: %v", err)
	}
	for d := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p listed
		err := d.Decode(&p)
		if errors.Is(err, io.EOF) {
			return packages
		}
		if err != nil {
			t.Fatal(err)
		}
		packages = append(packages, p)
	}
}
