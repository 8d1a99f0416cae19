package qemu

import (
	"net"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/vmsan/vmsan/internal/jail"
	"github.com/vmsan/vmsan/internal/vmm"
)

// partsList writes a machine as it is built, a part a line.
func partsList(t *testing.T, parts func(vmm.Spec, ends) []device, spec vmm.Spec) string {
	t.Helper()
	var c command
	var b strings.Builder
	for _, part := range parts(spec, ends{qmp: os.Stdin, console: os.Stdin, control: os.Stdin, data: os.Stdin}) {
		before := len(c.args)
		part.addTo(&c)
		b.WriteString(strings.Join(c.args[before:], " ") + "\n")
	}
	// The rate is this host's.
	return regexp.MustCompile(`tsc_early_khz=[0-9]+`).ReplaceAllString(b.String(), "tsc_early_khz=N")
}

func testSpec() vmm.Spec {
	return vmm.Spec{
		ID: "vmtest", VCPUs: 2, MemoryMiB: 512, Accelerator: vmm.TCG,
		Kernel: "/boot/vmlinux", Initramfs: "/boot/initramfs", Cmdline: []string{"vmsan.init=/sbin/init"},
		Disks: []vmm.Disk{{Name: "image", File: os.Stdin, ReadOnly: true}, {Name: "overlay", File: os.Stdin}},
		NIC:   &vmm.NIC{Tap: os.Stdin, MAC: net.HardwareAddr{0x02, 0, 0, 0, 0, 0x01}},
		Jail:  vmm.Jail{User: &jail.User{UID: 7, GID: 7}},
	}
}

func TestPartsEmulated(t *testing.T) {
	want := `-M microvm,pit=off,pic=off,rtc=on,suppress-vmdesc=on,memory-backend=ram -accel tcg,tb-size=64 -cpu max,erms=off,fsrm=off,la57=off -smp 2 -m 512M -nodefaults -no-user-config -display none -no-reboot
-chardev socket,id=qmp,fd=3 -mon chardev=qmp,mode=control
-chardev socket,id=console,fd=4 -serial chardev:console
-chardev socket,id=control,fd=5 -chardev socket,id=data,fd=6 -device virtio-serial-device,id=link,max_ports=3 -device virtserialport,bus=link.0,nr=1,chardev=control,name=vmsan.control -device virtserialport,bus=link.0,nr=2,chardev=data,name=vmsan.data
-object rng-builtin,id=entropy -device virtio-rng-device,rng=entropy
-object memory-backend-ram,id=ram,size=512M
-kernel /boot/vmlinux -initrd /boot/initramfs -append console=ttyS0 quiet panic=-1 reboot=t random.trust_cpu=on cryptomgr.notests initcall_blacklist=deadline_init tsc_early_khz=N tsc=reliable mitigations=off vmsan.init=/sbin/init
-add-fd fd=7,set=7 -blockdev driver=raw,node-name=image,read-only=on,discard=unmap,file.driver=file,file.filename=/dev/fdset/7,file.locking=off -device virtio-blk-device,drive=image,bus=virtio-mmio-bus.7
-add-fd fd=8,set=8 -blockdev driver=raw,node-name=overlay,read-only=off,discard=unmap,file.driver=file,file.filename=/dev/fdset/8,file.locking=off -device virtio-blk-device,drive=overlay,bus=virtio-mmio-bus.6
-netdev tap,id=net0,fd=9 -device virtio-net-device,netdev=net0,mac=02:00:00:00:00:01,guest_announce=off,bus=virtio-mmio-bus.2
-sandbox on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny
`
	compare(t, partsList(t, parts, testSpec()), want)
}

func TestPartsKVM(t *testing.T) {
	spec := testSpec()
	spec.Accelerator, spec.Disks, spec.NIC, spec.Cmdline, spec.Jail.NoSeccomp = vmm.KVM, nil, nil, nil, true
	want := `-M microvm,pit=off,pic=off,rtc=on,suppress-vmdesc=on,memory-backend=ram -accel kvm -cpu host -smp 2 -m 512M -nodefaults -no-user-config -display none -no-reboot
-chardev socket,id=qmp,fd=3 -mon chardev=qmp,mode=control
-chardev socket,id=console,fd=4 -serial chardev:console
-chardev socket,id=control,fd=5 -chardev socket,id=data,fd=6 -device virtio-serial-device,id=link,max_ports=3 -device virtserialport,bus=link.0,nr=1,chardev=control,name=vmsan.control -device virtserialport,bus=link.0,nr=2,chardev=data,name=vmsan.data
-object rng-builtin,id=entropy -device virtio-rng-device,rng=entropy
-object memory-backend-ram,id=ram,size=512M
-kernel /boot/vmlinux -initrd /boot/initramfs -append console=ttyS0 quiet panic=-1 reboot=t random.trust_cpu=on cryptomgr.notests initcall_blacklist=deadline_init
`
	compare(t, partsList(t, parts, spec), want)
}

func TestPartsRestored(t *testing.T) {
	want := `-M microvm,pit=off,pic=off,rtc=on,suppress-vmdesc=on,memory-backend=ram -accel tcg,tb-size=64 -cpu max,erms=off,fsrm=off,la57=off -smp 2 -m 512M -nodefaults -no-user-config -display none -no-reboot
-chardev socket,id=qmp,fd=3 -mon chardev=qmp,mode=control
-chardev socket,id=console,fd=4 -serial chardev:console
-chardev socket,id=control,fd=5 -chardev socket,id=data,fd=6 -device virtio-serial-device,id=link,max_ports=3 -device virtserialport,bus=link.0,nr=1,chardev=control,name=vmsan.control -device virtserialport,bus=link.0,nr=2,chardev=data,name=vmsan.data
-object rng-builtin,id=entropy -device virtio-rng-device,rng=entropy
-object memory-backend-file,id=ram,size=512M,mem-path=/memory,share=off
-S -incoming defer
-add-fd fd=7,set=7 -blockdev driver=raw,node-name=image,read-only=on,discard=unmap,file.driver=file,file.filename=/dev/fdset/7,file.locking=off -device virtio-blk-device,drive=image,bus=virtio-mmio-bus.7
-add-fd fd=8,set=8 -blockdev driver=raw,node-name=overlay,read-only=off,discard=unmap,file.driver=file,file.filename=/dev/fdset/8,file.locking=off -device virtio-blk-device,drive=overlay,bus=virtio-mmio-bus.6
-netdev tap,id=net0,fd=9 -device virtio-net-device,netdev=net0,mac=02:00:00:00:00:01,guest_announce=off,bus=virtio-mmio-bus.2
-sandbox on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny
`
	compare(t, partsList(t, restoredParts, testSpec()), want)
}

// A limit is a filter before the image, which the guest has for its disk.
func TestPartsLimited(t *testing.T) {
	spec := testSpec()
	spec.Disks = []vmm.Disk{{Name: "overlay", File: os.Stdin, Limit: vmm.DiskLimit{BytesPerSecond: 50 << 20, OpsPerSecond: 1000}}}
	want := `-add-fd fd=7,set=7 -blockdev driver=raw,node-name=overlay-unlimited,read-only=off,discard=unmap,file.driver=file,file.filename=/dev/fdset/7,file.locking=off -object {"qom-type":"throttle-group","id":"overlay-limit","limits":{"bps-total":52428800,"iops-total":1000}} -blockdev driver=throttle,node-name=overlay,read-only=off,discard=ignore,throttle-group=overlay-limit,file=overlay-unlimited -device virtio-blk-device,drive=overlay,bus=virtio-mmio-bus.7`
	for name, parts := range map[string]func(vmm.Spec, ends) []device{"parts": parts, "restored": restoredParts} {
		if list := partsList(t, parts, spec); !strings.Contains(list, want+"\n") {
			t.Errorf("%s: %s", name, list)
		}
	}
}

// The machine that seals has no disk that it could write to.
func TestPartsSealer(t *testing.T) {
	want := `-M microvm,pit=off,pic=off,rtc=on,suppress-vmdesc=on,memory-backend=ram -accel tcg,tb-size=64 -cpu max,erms=off,fsrm=off,la57=off -smp 2 -m 512M -nodefaults -no-user-config -display none -no-reboot
-chardev socket,id=qmp,fd=3 -mon chardev=qmp,mode=control
-chardev socket,id=console,fd=4 -serial chardev:console
-chardev socket,id=control,fd=5 -chardev socket,id=data,fd=6 -device virtio-serial-device,id=link,max_ports=3 -device virtserialport,bus=link.0,nr=1,chardev=control,name=vmsan.control -device virtserialport,bus=link.0,nr=2,chardev=data,name=vmsan.data
-object rng-builtin,id=entropy -device virtio-rng-device,rng=entropy
-object memory-backend-file,id=ram,size=512M,mem-path=/memory,share=on
-S -incoming defer
-blockdev driver=null-co,node-name=image,read-only=on,discard=unmap -device virtio-blk-device,drive=image,bus=virtio-mmio-bus.7
-blockdev driver=null-co,node-name=overlay,read-only=off,discard=unmap -device virtio-blk-device,drive=overlay,bus=virtio-mmio-bus.6
-netdev tap,id=net0,fd=7 -device virtio-net-device,netdev=net0,mac=02:00:00:00:00:01,guest_announce=off,bus=virtio-mmio-bus.2
-sandbox on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny
`
	compare(t, partsList(t, sealerParts, testSpec()), want)
}

func compare(t *testing.T, got, want string) {
	t.Helper()
	if diff := cmp.Diff(strings.Split(got, "\n"), strings.Split(want, "\n")); diff != "" {
		t.Errorf("got the lines with -, want those with +:\n%s", diff)
	}
}

// A path with a comma would be taken apart by QEMU: those that it is given
// are ours, in the jail, or come as descriptors.
func TestPartsNameNoHostFiles(t *testing.T) {
	spec := testSpec()
	list := partsList(t, parts, spec)
	for _, word := range strings.FieldsFunc(list, func(r rune) bool { return strings.ContainsRune(" =,\n", r) }) {
		if strings.HasPrefix(word, "/") && !strings.HasPrefix(word, "/boot/") && !strings.HasPrefix(word, "/dev/fdset/") && word != "/sbin/init" {
			t.Errorf("the command line names %s", word)
		}
	}
}

// Each disk has a slot of its own, below those before it, and none is the
// network device's.
func TestDiskBuses(t *testing.T) {
	last := firstDiskBus + 1
	for i := range vmm.MaxDisks {
		bus := diskBus(i)
		if bus >= last || bus < 0 || bus == nicBus {
			t.Errorf("disk %d is in slot %d, behind %d", i, bus, last)
		}
		last = bus
	}
	spec := testSpec()
	for range vmm.MaxDisks {
		spec.Disks = append(spec.Disks, vmm.Disk{Name: "volume", File: os.Stdin})
	}
	if _, err := (Driver{}).Start(t.Context(), spec); err == nil || !strings.Contains(err.Error(), "room for 7 disks") {
		t.Errorf("a machine with %d disks: %v", len(spec.Disks), err)
	}
}
