package api

// Explanation is what explain says of a code beside its meaning.
type Explanation struct {
	Code     Code     `json:"code"`
	ExitCode int      `json:"exitCode"`
	Meaning  string   `json:"meaning"`
	Causes   []string `json:"causes"`
	Remedies []string `json:"remedies"` // commands, or what else to do
}

// Explain returns what there is to say of a code, if there is such a code.
func Explain(code Code) (Explanation, bool) {
	meaning, known := Codes[code]
	more := explanations[code]
	return Explanation{Code: code, ExitCode: int(meaning.Kind), Meaning: meaning.Summary, Causes: more.causes, Remedies: more.remedies}, known
}

type list []string

// explanations has the usual causes of every code, and what to do.
var explanations = map[Code]struct{ causes, remedies list }{
	ErrInternal: {
		list{"a system call failed in a way that nobody has met yet", "a file of the state directory was changed by hand"},
		list{"vmsan doctor", "vmsan --verbose COMMAND, for what was being done", "report it, with the message"}},
	ErrInterrupted: {
		list{"Ctrl-C, or SIGTERM or SIGHUP of another program"},
		list{"the same command again; what was half made is taken back"}},

	ErrUsage: {
		list{"a command or flag is misspelt", "an argument is missing, or there is one too many"},
		list{"vmsan COMMAND --help", "vmsan --help"}},
	ErrValidationInteger: {
		list{"a number has letters in it, or a decimal point", "--vcpus is not between 1 and 32"},
		list{"vmsan create --vcpus 2"}},
	ErrValidationDiskSize: {
		list{"a size has a unit that vmsan does not know", "a disk is below 16 MiB or above 16 TiB", "--disk-rate is below 1 MiB or above 1 TiB a second", "resize was to make a disk smaller, which a mounted file system cannot become"},
		list{"vmsan create --disk 20g", "vmsan resize VM --disk 40g"}},
	ErrValidationMemory: {
		list{"a size has a unit that vmsan does not know", "a sandbox was to have less than 64 MiB", "resize was to give more memory than the sandbox was made with"},
		list{"vmsan create --memory 512m"}},
	ErrValidationDuration: {
		list{"a time has decimals, a sign, or units that are not d, h, m, s or ms", "a time is longer than it may be"},
		list{"write times like 90s, 1h30m or 2d"}},
	ErrValidationFlags: {
		list{"two flags ask for things that exclude each other", "a flag does nothing without another that is missing", "a snapshot has decided already what a flag asks for"},
		list{"leave out one of the flags that the message names", "vmsan COMMAND --help"}},
	ErrValidationName: {
		list{"a name has spaces, slashes or other special characters, or begins with one", "a name is longer than 63 characters", "a name looks like an id"},
		list{"vmsan create --name web-1"}},
	ErrValidationLabel: {
		list{"a label has no =, or characters that labels may not have", "there are more than 64 labels"},
		list{"vmsan create --label tier=front"}},
	ErrValidationEnv: {
		list{"a variable has no =; values are not taken from vmsan's own environment", "a name begins with a digit or has a dash", "all together are larger than 64 KiB"},
		list{"vmsan exec -e HOME=\"$HOME\" VM COMMAND"}},
	ErrValidationPath: {
		list{"a path in the guest is not absolute", "a file that was named cannot be read", "a volume was to cover /, /proc, /sys, /dev or /run"},
		list{"write paths in the guest from the /, like /srv/data", "ls -l FILE, for a file of the host"}},
	ErrValidationUser: {
		list{"a user has spaces or special characters"},
		list{"vmsan exec -u nobody VM id", "vmsan exec -u 1000:1000 VM id"}},
	ErrValidationChoice: {
		list{"a flag takes one of a few words, and was given another", "a program or unit that was named is none that vmsan knows"},
		list{"use one of the words that the message lists", "vmsan COMMAND --help"}},
	ErrValidationImageRef: {
		list{"a reference has capital letters, spaces, or a colon with nothing behind it", "a digest is not sha256: and 64 hexadecimal digits"},
		list{"vmsan image ls", "vmsan image pull registry.example.org/team/app:1.2"}},
	ErrValidationStateDir: {
		list{"--dir or $VMSAN_DIR is empty or is no directory", "the path is so long that sockets would not fit below it"},
		list{"vmsan --dir /var/lib/vmsan list", "vmsan config, for where the directory is said"}},

	ErrValidationNetworkPolicy: {
		list{"a policy is not allow-all, deny-all or custom", "a custom policy is larger than the firewall takes"},
		list{"vmsan network VM --network-policy deny-all", "vmsan network VM --allowed-domain example.org"}},
	ErrValidationPolicyConflict: {
		list{"deny-all was given together with what is allowed or denied"},
		list{"leave out --network-policy, and the lists make it custom"}},
	ErrValidationDomain: {
		list{"a domain has a scheme or a path, as in https://example.org/", "a * is not alone in front of the first dot"},
		list{"vmsan network VM --allowed-domain '*.example.org'"}},
	ErrValidationCIDR: {
		list{"an address has a part above 255, or a prefix above /32", "an address is IPv6"},
		list{"vmsan network VM --allowed-cidr 203.0.113.0/24:443/tcp"}},
	ErrValidationPort: {
		list{"a port is not between 1 and 65535", "what is published is not HOST:GUEST"},
		list{"vmsan create --publish 8080:80", "vmsan port-forward VM 8080:80"}},
	ErrValidationPortConflict: {
		list{"another program of the host listens on the port", "another sandbox publishes it", "one command publishes it twice"},
		list{"ss -ltnp, for who has it", "choose another port of the host: --publish 8081:80"}},
	ErrValidationBandwidth: {
		list{"a rate has no unit that vmsan knows, or is out of range"},
		list{"vmsan create --bandwidth 10mbit:20mbit"}},
	ErrValidationAddress: {
		list{"a DNS server is a name, or an IPv6 address", "the host has no such address to listen on"},
		list{"vmsan create --dns 192.0.2.53"}},
	ErrValidationVolume: {
		list{"a volume is not NAME:/PATH, or has something else than ro or rw behind it", "one volume or one path is there twice"},
		list{"vmsan create --volume data:/srv/data:ro"}},

	ErrNetwork: {
		list{"the host's kernel lacks nftables, tun or veth", "a firewall or network manager of the host removed what vmsan had made"},
		list{"vmsan doctor", "vmsan logs --monitor VM"}},
	ErrNetworkDefaultInterface: {
		list{"the host is not connected, or has no default route"},
		list{"ip route show default", "vmsan create --network none, or --network-policy deny-all"}},
	ErrNetworkPool: {
		list{"the range has addresses that the host or its VPN uses", "it is not IPv4, or too small"},
		list{"vmsan setup --network-pool 10.201.0.0/16"}},
	ErrNetworkUnavailable: {
		list{"the user is not root", "the host's kernel lacks what networks are made of"},
		list{"sudo vmsan create", "vmsan create --network none"}},

	ErrVMNotFound: {
		list{"the name or id is misspelt", "the sandbox was removed, or removed itself when its command ended", "it is in another state directory: that of root and those of users are not the same"},
		list{"vmsan list", "sudo vmsan list"}},
	ErrVMAmbiguous: {
		list{"the beginning of an id fits several sandboxes"},
		list{"vmsan list, and more letters of the id"}},
	ErrVMNameTaken: {
		list{"a sandbox of that name is there already, perhaps stopped"},
		list{"vmsan rm NAME", "vmsan rename NAME OTHER"}},
	ErrVMNotStopped: {
		list{"the sandbox runs or is paused, and the command is for one that is not"},
		list{"vmsan stop VM", "vmsan rm -f VM"}},
	ErrVMNotRunning: {
		list{"the sandbox is stopped, paused, or failed to start"},
		list{"vmsan start VM", "vmsan resume VM", "vmsan inspect VM, for the reason"}},
	ErrVMBusy: {
		list{"another command is starting, stopping or saving the sandbox just now"},
		list{"try again", "vmsan list"}},
	ErrVMBoot: {
		list{"the image's own init does not start", "the VMM was refused something by the host", "the host is out of memory", "--memory is too little for the kernel"},
		list{"vmsan logs VM, if it is still there", "vmsan doctor", "vmsan create --cold, without a template"}},
	ErrVMDied: {
		list{"the guest shut itself down, or its kernel panicked", "its main process ended", "the host's memory ran out and the VMM was killed"},
		list{"vmsan logs VM", "vmsan inspect VM, for the reason", "vmsan start VM"}},
	ErrVMRecord: {
		list{"a newer vmsan wrote the record", "the file was changed or cut short by something else"},
		list{"use the newer vmsan", "vmsan rm -f VM, which loses the sandbox"}},
	ErrVMSlotsExhausted: {
		list{"as many sandboxes are there as the pool of addresses has room for, or as a state directory can have"},
		list{"vmsan list, and vmsan rm those that are done with", "vmsan setup --network-pool with a larger range"}},

	ErrImageNotFound: {
		list{"the name is misspelt, or its tag is not latest", "the image was never pulled or imported", "setup was told to make no default image"},
		list{"vmsan image ls", "vmsan image pull IMAGE"}},
	ErrImageCorrupt: {
		list{"the disk has failed, or a file of the state directory was changed by hand"},
		list{"vmsan image rm IMAGE, and vmsan image pull IMAGE or vmsan setup"}},
	ErrImageInUse: {
		list{"a sandbox or snapshot was made of the image and needs it to start"},
		list{"vmsan list", "vmsan snapshot ls"}},
	ErrImageInvalid: {
		list{"the archive is not a tar, an OCI layout, a docker save or an ext4 file system", "it is for another architecture, or was cut short"},
		list{"docker save IMAGE | vmsan image import -", "file ARCHIVE"}},
	ErrKernelInvalid: {
		list{"the file is no Linux kernel for this architecture, or lacks virtio or overlayfs"},
		list{"vmsan setup, without --kernel"}},

	ErrRegistry: {
		list{"the host cannot reach the registry or resolve its name", "the registry's certificate is not known to the host", "the registry answers with an error of its own"},
		list{"curl -I https://REGISTRY/v2/", "registries.json says how to reach it; see docs/images.md"}},
	ErrRegistryAuth: {
		list{"the image is private, or there is none of that name: registries often do not say which", "the credentials are wrong or have run out"},
		list{"docker login REGISTRY, whose credentials vmsan reads"}},
	ErrRegistryBusy: {
		list{"the registry limits how much one address may pull"},
		list{"wait, or log in: docker login REGISTRY"}},
	ErrRegistryConfig: {
		list{"registries.json or runtimes.json is no JSON, or has a key that is not known"},
		list{"mend the file at the place that the message names; see docs/images.md"}},

	ErrSnapshotNotFound: {
		list{"the name or id is misspelt", "the snapshot was removed"},
		list{"vmsan snapshot ls"}},
	ErrSnapshotAmbiguous: {
		list{"the beginning of an id fits several snapshots"},
		list{"vmsan snapshot ls, and more letters of the id"}},
	ErrSnapshotNameTaken: {
		list{"a snapshot of that name is there already"},
		list{"vmsan snapshot rm NAME"}},
	ErrSnapshotInUse: {
		list{"a sandbox is just starting from it"},
		list{"try again"}},
	ErrSnapshotCorrupt: {
		list{"the disk has failed, or a file of the snapshot was changed by hand"},
		list{"vmsan snapshot inspect --verify SNAPSHOT", "vmsan snapshot rm SNAPSHOT"}},
	ErrSnapshotInvalid: {
		list{"the archive was not made by snapshot export, or was cut short on the way"},
		list{"vmsan snapshot export SNAPSHOT FILE, again"}},
	ErrSnapshotUnfit: {
		list{"the CPU, the VMM or the kernel is another than when it was saved", "vmsan was updated, and its agent with it", "its image is not here"},
		list{"vmsan snapshot inspect SNAPSHOT, for what it needs", "make the snapshot again on this host"}},

	ErrVolumeNotFound: {
		list{"the name is misspelt", "a volume that is only to be read is not made on the way"},
		list{"vmsan volume ls", "vmsan volume create NAME"}},
	ErrVolumeExists: {
		list{"a volume of that name is there already"},
		list{"vmsan volume ls"}},
	ErrVolumeInUse: {
		list{"a sandbox was made with the volume", "another sandbox writes to it"},
		list{"vmsan volume inspect NAME", "vmsan rm VM"}},

	ErrTimeoutAgent: {
		list{"the host is slow or busy, and KVM does not work on it", "the guest hangs while it boots"},
		list{"vmsan create --boot-timeout 5m", "vmsan doctor"}},
	ErrTimeoutLock: {
		list{"another vmsan works on the same thing, or was stopped while it did; the message names its process, if it can be seen"},
		list{"try again", "kill -9 PID, if it hangs"}},
	ErrTimeout: {
		list{"the guest is busy, paused inside, or does not answer", "the host is overloaded"},
		list{"try again", "vmsan logs VM"}},

	ErrSetupRequired: {
		list{"vmsan setup has not been run for this state directory", "another user, or --dir, has another one"},
		list{"vmsan setup"}},
	ErrSetupMissingBinary: {
		list{"QEMU, mmdebstrap or mkfs.ext4 is not installed, or not in the search path", "a program that uses vmsan as a library does not find the vmsan program"},
		list{"apt-get install qemu-system-x86 mmdebstrap e2fsprogs", "vmsan doctor"}},
	ErrSetupNoAccelerator: {
		list{"QEMU is not installed, or its version is too old", "neither KVM nor software emulation could boot the kernel"},
		list{"vmsan doctor", "vmsan setup"}},
	ErrSetupKVMUnavailable: {
		list{"the CPU's virtualization is switched off, or the host is itself a machine without nested virtualization", "the user may not open /dev/kvm"},
		list{"ls -l /dev/kvm", "usermod -aG kvm USER", "vmsan create --accel tcg, which is slower and isolates less"}},
	ErrSetupDownload: {
		list{"the host is not connected, or a proxy is needed", "what was fetched is not what it should be"},
		list{"try again", "vmsan setup --help, for how to bring it from elsewhere"}},

	ErrHook: {
		list{"an executable in the state directory's hooks, or a hook of a program that uses vmsan, refused what was to be done", "it failed, or took longer than 30 seconds"},
		list{"do what its message asks for", "run it by hand: echo '{}' | HOOK", "chmod -x HOOK turns it off; see docs/hooks.md"}},
	ErrConfig: {
		list{"the config file has a key that is no flag, or a value of the wrong type", "it is not TOML", "a variable like VMSAN_MEMORY has a value that its flag does not take"},
		list{"vmsan config", "vmsan --config /dev/null COMMAND, without the file"}},

	ErrUnsupported: {
		list{"the driver, the kernel or the sandbox was not made for what was asked for"},
		list{"vmsan doctor", "vmsan inspect VM"}},
	ErrPermission: {
		list{"the command needs root", "the state directory, a file or a hook belongs to somebody else"},
		list{"sudo vmsan COMMAND", "ls -ld of the path that the message names"}},
	ErrDiskFull: {
		list{"the file system of the state directory is full, or the user's quota is", "the guest's own disk is full"},
		list{"vmsan df", "vmsan gc", "vmsan image prune", "vmsan resize VM --disk 20g"}},

	ErrHostMemory: {
		list{"the sandbox is to have more memory than the host has left", "other sandboxes or programs take too much"},
		list{"vmsan stats --no-stream", "vmsan pause --reclaim VM", "vmsan create --memory 512m", "vmsan create --overcommit"}},

	ErrGuestLink: {
		list{"the sandbox ended meanwhile", "the gate, which talks to the guest, had to be replaced", "the guest hangs"},
		list{"vmsan logs VM", "vmsan list", "try again"}},
	ErrGuest: {
		list{"the guest lacks something: memory, processes, a right", "its agent was stopped or replaced by something in the guest"},
		list{"vmsan logs VM", "vmsan exec VM free -m"}},
	ErrExecNotFound: {
		list{"the image does not have the program, or not in the PATH of the user", "the working directory is not there", "a script names an interpreter that is not there"},
		list{"vmsan exec VM sh -c 'command -v PROGRAM'", "use an image that has it: vmsan image ls"}},
	ErrExecNotExecutable: {
		list{"the file lacks the x bit, or is a directory", "it is for another architecture", "the user may not reach it"},
		list{"vmsan exec VM ls -l FILE", "vmsan exec VM sh SCRIPT"}},
	ErrProcessNotFound: {
		list{"the command has ended, and was not started with --detach", "the process id is one of the host"},
		list{"vmsan ps VM"}},
	ErrFileNotFound: {
		list{"the path is misspelt, or relative to another directory than you think", "the directory that a copy is to be put in is not there"},
		list{"vmsan exec VM ls -la DIRECTORY"}},
	ErrFile: {
		list{"there is a file where a directory should be, or the other way round", "the path is a device, a socket or a pipe", "a copy would go into itself"},
		list{"vmsan exec VM ls -la DIRECTORY"}},
}
