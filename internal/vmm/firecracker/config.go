package firecracker

import (
	"runtime"
	"strings"
	"time"

	"github.com/vmsan/vmsan/internal/vmm"
)

// Where things are in a jail. Drives are below diskDirectory, by their names.
const (
	jailKernel    = "/boot/vmlinux"
	jailInitramfs = "/boot/initramfs"
	jailFilter    = "/boot/filter"
	jailLog       = "/log"
	jailMetrics   = "/metrics"
	jailAPI       = "/api.sock"
	jailVsock     = "/v.sock"
	jailMemory    = "/saved/memory"
	jailState     = "/saved/state"
	// What is saved does not take the place of what was restored.
	jailNewMemory = "/saving/memory"
	jailNewState  = "/saving/state"
	diskDirectory = "/disks/"
)

// The guest's vsock address. It is one per machine, and so the same in all.
const guestCID = 3

// nicID is the network device's name in the API.
const nicID = "net0"

// The bodies of requests: what vsock, drives and all the rest are is described
// in Firecracker's src/firecracker/swagger/firecracker.yaml.
type (
	machineConfig struct {
		VCPUs           int    `json:"vcpu_count"`
		MemoryMiB       int    `json:"mem_size_mib"`
		SMT             bool   `json:"smt"`
		TrackDirtyPages bool   `json:"track_dirty_pages"`
		HugePages       string `json:"huge_pages"`
	}
	bootSource struct {
		Kernel    string `json:"kernel_image_path"`
		Initramfs string `json:"initrd_path"`
		Cmdline   string `json:"boot_args"`
	}
	drive struct {
		ID        string `json:"drive_id"`
		Path      string `json:"path_on_host"`
		Root      bool   `json:"is_root_device"`
		ReadOnly  bool   `json:"is_read_only"`
		CacheType string `json:"cache_type"`
		IOEngine  string `json:"io_engine"`
		// Absent without a limit.
		Limiter *rateLimiter `json:"rate_limiter,omitempty"`
	}
	// A drive that goes on, with another limit than it may have been saved with.
	driveLimit struct {
		ID      string      `json:"drive_id"`
		Limiter rateLimiter `json:"rate_limiter"`
	}
	// A bucket of no size is no limit. One that is absent would be, of a drive
	// that runs, what it was.
	rateLimiter struct {
		Bandwidth tokenBucket `json:"bandwidth"`
		Ops       tokenBucket `json:"ops"`
	}
	tokenBucket struct {
		Size         int64 `json:"size"`        // bytes or operations
		RefillMillis int64 `json:"refill_time"` // in which it is filled once
	}
	// A drive that runs, of which Firecracker is to look at the size anew.
	driveUpdate struct {
		ID   string `json:"drive_id"`
		Path string `json:"path_on_host"`
	}
	balloon struct {
		MiB          int  `json:"amount_mib"`
		DeflateOnOOM bool `json:"deflate_on_oom"`
	}
	balloonUpdate struct {
		MiB int `json:"amount_mib"`
	}
	networkInterface struct {
		ID  string `json:"iface_id"`
		Tap string `json:"host_dev_name"`
		MAC string `json:"guest_mac"`
	}
	vsock struct {
		CID  int    `json:"guest_cid"`
		Path string `json:"uds_path"`
	}
	entropy struct{}
	action  struct {
		Type string `json:"action_type"`
	}
	vmState struct {
		State string `json:"state"`
	}
	snapshotCreate struct {
		Type   string `json:"snapshot_type"`
		State  string `json:"snapshot_path"`
		Memory string `json:"mem_file_path"`
	}
	memoryBackend struct {
		Type string `json:"backend_type"`
		Path string `json:"backend_path"`
	}
	// What later versions have besides, 1.12 would refuse.
	snapshotLoad struct {
		State  string        `json:"snapshot_path"`
		Memory memoryBackend `json:"mem_backend"`
		Resume bool          `json:"resume_vm"`
	}
)

// configuration lists what makes a machine, in order. Drives become vda, vdb,
// ... in the order that they are made in.
func configuration(spec vmm.Spec) []request {
	list := []request{
		{"PUT", "/machine-config", machineConfig{VCPUs: spec.VCPUs, MemoryMiB: spec.MemoryMiB, HugePages: "None"}},
		{"PUT", "/boot-source", bootSource{jailKernel, jailInitramfs, strings.Join(cmdline(spec), " ")}},
	}
	for _, d := range spec.Disks {
		// What the guest flushes reaches the host's disk.
		made := drive{ID: d.Name, Path: diskDirectory + d.Name, ReadOnly: d.ReadOnly, CacheType: "Writeback", IOEngine: "Sync"}
		if d.Limit != (vmm.DiskLimit{}) {
			made.Limiter = new(limiter(d.Limit))
		}
		list = append(list, request{"PUT", "/drives/" + d.Name, made})
	}
	if spec.NIC != nil {
		list = append(list, request{"PUT", "/network-interfaces/" + nicID, networkInterface{
			nicID, spec.NIC.Name, spec.NIC.MAC.String(),
		}})
	}
	return append(list,
		request{"PUT", "/vsock", vsock{guestCID, jailVsock}},
		request{"PUT", "/entropy", entropy{}},
		// It has nothing yet. What is taken stays taken, even from a guest that
		// runs out of memory: that is what somebody has asked for.
		request{"PUT", "/balloon", balloon{}},
	)
}

func limiter(l vmm.DiskLimit) rateLimiter {
	return rateLimiter{bucket(l.BytesPerSecond), bucket(l.OpsPerSecond)}
}

func bucket(perSecond int64) tokenBucket {
	return tokenBucket{Size: perSecond, RefillMillis: time.Second.Milliseconds()}
}

func instanceStart() request { return request{"PUT", "/actions", action{"InstanceStart"}} }

func flushMetrics() request { return request{"PUT", "/actions", action{"FlushMetrics"}} }

// loading lists what makes a machine out of one that was saved. All paths and
// names in it are the same in every jail.
func loading(disks []vmm.Disk) []request {
	list := []request{{"PUT", "/snapshot/load", snapshotLoad{
		State: jailState, Memory: memoryBackend{"File", jailMemory},
	}}}
	for _, d := range disks {
		list = append(list, request{"PATCH", "/drives/" + d.Name, driveLimit{d.Name, limiter(d.Limit)}})
	}
	return list
}

func saving() request {
	return request{"PUT", "/snapshot/create", snapshotCreate{"Full", jailNewState, jailNewMemory}}
}

func resized(disk string) request {
	return request{"PATCH", "/drives/" + disk, driveUpdate{disk, diskDirectory + disk}}
}

func inflated(mib int) request { return request{"PATCH", "/balloon", balloonUpdate{mib}} }

func state(s string) request { return request{"PATCH", "/vm", vmState{s}} }

// cmdline is the kernel's command line. A panic resets the machine at once,
// and a reset, by the keyboard's controller, ends Firecracker. There is no PCI
// to look for.
func cmdline(spec vmm.Spec) []string {
	words := []string{"console=ttyS0", "quiet", "panic=-1", "reboot=k", "pci=off", "random.trust_cpu=on", "cryptomgr.notests"}
	if runtime.GOARCH == "arm64" {
		// No such controller: a reset is a call of the firmware's interface.
		words = []string{"console=ttyS0", "quiet", "panic=-1", "pci=off", "random.trust_cpu=on", "cryptomgr.notests"}
	}
	return append(words, spec.Cmdline...)
}
