package firecracker

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"runtime"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/vmsan/vmsan/internal/jail"
	"github.com/vmsan/vmsan/internal/vmm"
)

// list writes requests as they are made, a line each.
func list(t *testing.T, requests ...request) string {
	t.Helper()
	var b strings.Builder
	for _, r := range requests {
		body, err := json.Marshal(r.body)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&b, "%s %s %s\n", r.method, r.path, body)
	}
	return b.String()
}

func compare(t *testing.T, got, want string) {
	t.Helper()
	if diff := cmp.Diff(strings.Split(got, "\n"), strings.Split(want, "\n")); diff != "" {
		t.Errorf("got the lines with -, want those with +:\n%s", diff)
	}
}

func testSpec() vmm.Spec {
	return vmm.Spec{
		ID: "vm0123456789", VCPUs: 4, MemoryMiB: 2048, Accelerator: vmm.KVM,
		Kernel: "/var/lib/vmsan/vmlinux", Initramfs: "/var/lib/vmsan/initramfs", Cmdline: []string{"vmsan.init=/sbin/init"},
		Disks: []vmm.Disk{{Name: "image", ReadOnly: true}, {Name: "overlay"}},
		NIC:   &vmm.NIC{Name: "tap0", MAC: net.HardwareAddr{0x02, 0, 0, 0, 0, 0x01}},
		Jail:  vmm.Jail{User: &jail.User{UID: 7, GID: 8}, Root: "/run/vmsan/vm0123456789/root"},
	}
}

// TestRequests is all that Firecracker is told of a machine: CPUs, memory,
// kernel, init, disks and network device are those that create takes.
func TestRequests(t *testing.T) {
	reboot := "reboot=k "
	if runtime.GOARCH == "arm64" {
		reboot = ""
	}
	compare(t, list(t, append(configuration(testSpec()), instanceStart())...),
		`PUT /machine-config {"vcpu_count":4,"mem_size_mib":2048,"smt":false,"track_dirty_pages":false,"huge_pages":"None"}
PUT /boot-source {"kernel_image_path":"/boot/vmlinux","initrd_path":"/boot/initramfs","boot_args":"console=ttyS0 quiet panic=-1 `+reboot+`pci=off random.trust_cpu=on cryptomgr.notests vmsan.init=/sbin/init"}
PUT /drives/image {"drive_id":"image","path_on_host":"/disks/image","is_root_device":false,"is_read_only":true,"cache_type":"Writeback","io_engine":"Sync"}
PUT /drives/overlay {"drive_id":"overlay","path_on_host":"/disks/overlay","is_root_device":false,"is_read_only":false,"cache_type":"Writeback","io_engine":"Sync"}
PUT /network-interfaces/net0 {"iface_id":"net0","host_dev_name":"tap0","guest_mac":"02:00:00:00:00:01"}
PUT /vsock {"guest_cid":3,"uds_path":"/v.sock"}
PUT /entropy {}
PUT /balloon {"amount_mib":0,"deflate_on_oom":false}
PUT /actions {"action_type":"InstanceStart"}
`)
}

// TestRequestsRestored names nothing that differs between sandboxes.
func TestRequestsRestored(t *testing.T) {
	compare(t, list(t, append(loading(testSpec().Disks), state("Resumed"))...),
		`PUT /snapshot/load {"snapshot_path":"/saved/state","mem_backend":{"backend_type":"File","backend_path":"/saved/memory"},"resume_vm":false}
PATCH /drives/image {"drive_id":"image","rate_limiter":{"bandwidth":{"size":0,"refill_time":1000},"ops":{"size":0,"refill_time":1000}}}
PATCH /drives/overlay {"drive_id":"overlay","rate_limiter":{"bandwidth":{"size":0,"refill_time":1000},"ops":{"size":0,"refill_time":1000}}}
PATCH /vm {"state":"Resumed"}
`)
}

// TestRequestsLimited: a limit is the same for a drive that boots and for one
// that goes on.
func TestRequestsLimited(t *testing.T) {
	spec := testSpec()
	spec.Disks = []vmm.Disk{{Name: "overlay", Limit: vmm.DiskLimit{BytesPerSecond: 50 << 20, OpsPerSecond: 1000}}, {Name: "volumea", Limit: vmm.DiskLimit{OpsPerSecond: 10}}}
	var drives []request
	for _, r := range append(configuration(spec), loading(spec.Disks)...) {
		if strings.HasPrefix(r.path, "/drives/") {
			drives = append(drives, r)
		}
	}
	const rest = `"is_root_device":false,"is_read_only":false,"cache_type":"Writeback","io_engine":"Sync",`
	const both = `"rate_limiter":{"bandwidth":{"size":52428800,"refill_time":1000},"ops":{"size":1000,"refill_time":1000}}}`
	const ops = `"rate_limiter":{"bandwidth":{"size":0,"refill_time":1000},"ops":{"size":10,"refill_time":1000}}}`
	compare(t, list(t, drives...),
		`PUT /drives/overlay {"drive_id":"overlay","path_on_host":"/disks/overlay",`+rest+both+`
PUT /drives/volumea {"drive_id":"volumea","path_on_host":"/disks/volumea",`+rest+ops+`
PATCH /drives/overlay {"drive_id":"overlay",`+both+`
PATCH /drives/volumea {"drive_id":"volumea",`+ops+`
`)
}

func TestRequestsSaved(t *testing.T) {
	compare(t, list(t, state("Paused"), saving()),
		`PATCH /vm {"state":"Paused"}
PUT /snapshot/create {"snapshot_type":"Full","snapshot_path":"/saving/state","mem_file_path":"/saving/memory"}
`)
}

func TestRequestsResized(t *testing.T) {
	compare(t, list(t, resized("overlay"), inflated(64)),
		`PATCH /drives/overlay {"drive_id":"overlay","path_on_host":"/disks/overlay"}
PATCH /balloon {"amount_mib":64}
`)
}

// TestJailerArguments is the jailer's command line, a word or pair a line.
func TestJailerArguments(t *testing.T) {
	o := &order{programs: programs{firecracker: "/opt/firecracker-v1.16.0-x86_64", jailer: "/opt/jailer"}, spec: testSpec(), largest: 10 << 30}
	want := `--id vm0123456789
--exec-file /opt/firecracker-v1.16.0-x86_64
--uid 7
--gid 8
--chroot-base-dir /run/vmsan/vm0123456789/root
--resource-limit no-file=2048
--resource-limit fsize=10804527104
--
--api-sock /api.sock
--log-path /log
--level Warning
--show-level
--metrics-path /metrics`
	compare(t, words(o.arguments()), want)
	o.spec.Jail.NoSeccomp = true
	compare(t, words(o.arguments()), want+"\n--no-seccomp")
	o.spec.Jail.NoSeccomp, o.spec.Jail.Filter = false, os.Stdin
	compare(t, words(o.arguments()), want+"\n--seccomp-filter /boot/filter")
	if got := o.root(); got != "firecracker-v1.16.0-x86_64/vm0123456789/root" {
		t.Errorf("the jail is at %s", got)
	}
}

// words puts each option on a line, with its value.
func words(args []string) string {
	lines := strings.ReplaceAll(strings.Join(args, " "), " --", "\n--")
	return strings.ReplaceAll(lines, "-- --", "--\n--")
}

func TestRefusedSpecs(t *testing.T) {
	for name, change := range map[string]func(*vmm.Spec){
		"it needs root":  func(s *vmm.Spec) { s.Jail.User = nil },
		"it is not to":   func(s *vmm.Spec) { s.Jail.User.UID = 0 },
		"no accelerator": func(s *vmm.Spec) { s.Accelerator = vmm.TCG },
		"takes no id":    func(s *vmm.Spec) { s.ID = "../vm" },
	} {
		spec := testSpec()
		change(&spec)
		if vm, err := (Driver{}).Start(t.Context(), spec); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("got %v, %v; want an error with %q", vm, err, name)
		}
	}
}

// FuzzFault reads what a Firecracker that was taken over may answer.
func FuzzFault(f *testing.F) {
	f.Add([]byte(`{"fault_message":"Drive config error: No such file or directory (os error 2)"}`))
	f.Add([]byte(`{"fault_message":"\u001b[2J"}`))
	f.Add([]byte(`{"fault_message":7}`))
	f.Add([]byte("\xff\n\n"))
	f.Fuzz(func(t *testing.T, answer []byte) {
		if got := faultMessage(answer); strings.ContainsAny(got, "\n\x1b") || len(got) > 4*maxFault {
			t.Errorf("got %q", got)
		}
	})
}

// FuzzHandshake reads what it may say over vsock.
func FuzzHandshake(f *testing.F) {
	f.Add([]byte("OK 1073741824\nrest"))
	f.Add([]byte("OK"))
	f.Add([]byte(strings.Repeat("x", 100)))
	f.Fuzz(func(t *testing.T, said []byte) {
		ours, theirs := net.Pipe()
		go func() {
			defer theirs.Close()
			theirs.Read(make([]byte, 64))
			theirs.Write(said)
		}()
		err := handshake(ours, 1024)
		ours.Close()
		if line, _, ok := strings.Cut(string(said), "\n"); (err == nil) != (ok && len(line) < maxGreeting && strings.HasPrefix(line, "OK ")) {
			t.Errorf("%q: %v", said, err)
		}
	})
}
