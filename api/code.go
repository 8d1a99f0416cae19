// Package api holds the types that vmsan prints as JSON and the codes of its
// errors. It imports nothing of the project, so that clients can use it alone.
package api

// Code names a kind of failure. Codes are stable: scripts match on them.
type Code string

// Kind groups codes by what a caller can do about them; a kind has one exit
// code (see docs/exit-codes.md).
type Kind int

// The kinds, in the order of their exit codes.
const (
	KindInternal    Kind = 1  // a fault of vmsan or of the host that has no better name
	KindUsage       Kind = 2  // the command line is wrong
	KindNotFound    Kind = 3  // what was named does not exist
	KindConflict    Kind = 4  // it exists already, or is in the wrong state
	KindTimeout     Kind = 5  // something took longer than it may
	KindSetup       Kind = 6  // vmsan is not set up on this host
	KindUnsupported Kind = 7  // this host cannot do that
	KindPermission  Kind = 8  // the user may not do that
	KindExhausted   Kind = 9  // out of disk, memory, addresses or numbers
	KindGuest       Kind = 10 // the guest failed or misbehaved
	KindUnfit       Kind = 11 // doctor found something that does not work

	KindInterrupted Kind = 130 // by a signal, as shells say it
)

// The codes.
const (
	ErrInternal    Code = "ERR_INTERNAL"
	ErrInterrupted Code = "ERR_INTERRUPTED"

	ErrUsage              Code = "ERR_USAGE"
	ErrValidationInteger  Code = "ERR_VALIDATION_INTEGER"
	ErrValidationDiskSize Code = "ERR_VALIDATION_DISK_SIZE"
	ErrValidationMemory   Code = "ERR_VALIDATION_MEMORY"
	ErrValidationDuration Code = "ERR_VALIDATION_DURATION"
	ErrValidationFlags    Code = "ERR_VALIDATION_FLAGS"
	ErrValidationName     Code = "ERR_VALIDATION_NAME"
	ErrValidationLabel    Code = "ERR_VALIDATION_LABEL"
	ErrValidationEnv      Code = "ERR_VALIDATION_ENV"
	ErrValidationPath     Code = "ERR_VALIDATION_PATH"
	ErrValidationUser     Code = "ERR_VALIDATION_USER"
	ErrValidationChoice   Code = "ERR_VALIDATION_CHOICE"
	ErrValidationImageRef Code = "ERR_VALIDATION_IMAGE_REF"
	ErrValidationStateDir Code = "ERR_VALIDATION_STATE_DIR"

	ErrValidationNetworkPolicy  Code = "ERR_VALIDATION_NETWORK_POLICY"
	ErrValidationPolicyConflict Code = "ERR_VALIDATION_POLICY_CONFLICT"
	ErrValidationDomain         Code = "ERR_VALIDATION_DOMAIN"
	ErrValidationCIDR           Code = "ERR_VALIDATION_CIDR"
	ErrValidationPort           Code = "ERR_VALIDATION_PORT"
	ErrValidationPortConflict   Code = "ERR_VALIDATION_PORT_CONFLICT"
	ErrValidationBandwidth      Code = "ERR_VALIDATION_BANDWIDTH"
	ErrValidationAddress        Code = "ERR_VALIDATION_ADDRESS"
	ErrValidationVolume         Code = "ERR_VALIDATION_VOLUME"

	ErrVMNotFound       Code = "ERR_VM_NOT_FOUND"
	ErrVMAmbiguous      Code = "ERR_VM_AMBIGUOUS"
	ErrVMNameTaken      Code = "ERR_VM_NAME_TAKEN"
	ErrVMNotStopped     Code = "ERR_VM_NOT_STOPPED"
	ErrVMNotRunning     Code = "ERR_VM_NOT_RUNNING"
	ErrVMBusy           Code = "ERR_VM_BUSY"
	ErrVMBoot           Code = "ERR_VM_BOOT"
	ErrVMDied           Code = "ERR_VM_DIED"
	ErrVMRecord         Code = "ERR_VM_RECORD"
	ErrVMSlotsExhausted Code = "ERR_VM_SLOTS_EXHAUSTED"

	ErrNetwork                 Code = "ERR_NETWORK"
	ErrNetworkDefaultInterface Code = "ERR_NETWORK_DEFAULT_INTERFACE"
	ErrNetworkPool             Code = "ERR_NETWORK_POOL"
	ErrNetworkUnavailable      Code = "ERR_NETWORK_UNAVAILABLE"

	ErrImageNotFound Code = "ERR_IMAGE_NOT_FOUND"
	ErrImageCorrupt  Code = "ERR_IMAGE_CORRUPT"
	ErrImageInUse    Code = "ERR_IMAGE_IN_USE"
	ErrImageInvalid  Code = "ERR_IMAGE_INVALID"
	ErrKernelInvalid Code = "ERR_KERNEL_INVALID"

	ErrRegistry       Code = "ERR_REGISTRY"
	ErrRegistryAuth   Code = "ERR_REGISTRY_AUTH"
	ErrRegistryBusy   Code = "ERR_REGISTRY_BUSY"
	ErrRegistryConfig Code = "ERR_REGISTRY_CONFIG"

	ErrSnapshotNotFound  Code = "ERR_SNAPSHOT_NOT_FOUND"
	ErrSnapshotAmbiguous Code = "ERR_SNAPSHOT_AMBIGUOUS"
	ErrSnapshotNameTaken Code = "ERR_SNAPSHOT_NAME_TAKEN"
	ErrSnapshotInUse     Code = "ERR_SNAPSHOT_IN_USE"
	ErrSnapshotCorrupt   Code = "ERR_SNAPSHOT_CORRUPT"
	ErrSnapshotInvalid   Code = "ERR_SNAPSHOT_INVALID"
	ErrSnapshotUnfit     Code = "ERR_SNAPSHOT_UNFIT"

	ErrVolumeNotFound Code = "ERR_VOLUME_NOT_FOUND"
	ErrVolumeExists   Code = "ERR_VOLUME_EXISTS"
	ErrVolumeInUse    Code = "ERR_VOLUME_IN_USE"

	ErrTimeoutAgent Code = "ERR_TIMEOUT_AGENT"
	ErrTimeoutLock  Code = "ERR_TIMEOUT_LOCK"
	ErrTimeout      Code = "ERR_TIMEOUT"

	ErrSetupRequired       Code = "ERR_SETUP_REQUIRED"
	ErrSetupMissingBinary  Code = "ERR_SETUP_MISSING_BINARY"
	ErrSetupNoAccelerator  Code = "ERR_SETUP_NO_ACCELERATOR"
	ErrSetupKVMUnavailable Code = "ERR_SETUP_KVM_UNAVAILABLE"
	ErrSetupDownload       Code = "ERR_SETUP_DOWNLOAD"

	ErrHook   Code = "ERR_HOOK"
	ErrConfig Code = "ERR_CONFIG"

	ErrUnsupported Code = "ERR_UNSUPPORTED"
	ErrPermission  Code = "ERR_PERMISSION"
	ErrDiskFull    Code = "ERR_DISK_FULL"
	ErrHostMemory  Code = "ERR_HOST_MEMORY"

	ErrGuestLink         Code = "ERR_GUEST_LINK"
	ErrGuest             Code = "ERR_GUEST"
	ErrExecNotFound      Code = "ERR_EXEC_NOT_FOUND"
	ErrExecNotExecutable Code = "ERR_EXEC_NOT_EXECUTABLE"
	ErrProcessNotFound   Code = "ERR_PROCESS_NOT_FOUND"
	ErrFileNotFound      Code = "ERR_FILE_NOT_FOUND"
	ErrFile              Code = "ERR_FILE"
)

// Meaning says what a code stands for.
type Meaning struct {
	Kind    Kind
	Summary string
}

// Codes lists every code with its meaning.
var Codes = map[Code]Meaning{
	ErrInternal:    {KindInternal, "vmsan or the host failed in a way that has no code of its own"},
	ErrInterrupted: {KindInterrupted, "vmsan was interrupted by a signal before it was done"},

	ErrUsage:              {KindUsage, "the command line is not one vmsan knows"},
	ErrValidationInteger:  {KindUsage, "a number is malformed or out of range"},
	ErrValidationDiskSize: {KindUsage, "a disk size is malformed or out of range"},
	ErrValidationMemory:   {KindUsage, "a memory size is malformed or out of range"},
	ErrValidationDuration: {KindUsage, "a duration is malformed or out of range"},
	ErrValidationFlags:    {KindUsage, "flags that exclude each other were given together"},
	ErrValidationName:     {KindUsage, "a name has characters that names may not have"},
	ErrValidationLabel:    {KindUsage, "a label is not key=value, or has characters labels may not have"},
	ErrValidationEnv:      {KindUsage, "an environment variable is not KEY=VALUE"},
	ErrValidationPath:     {KindUsage, "a path is not absolute, or not a path at all"},
	ErrValidationUser:     {KindUsage, "a user is neither a name nor a number"},
	ErrValidationChoice:   {KindUsage, "a flag's value is not one of those it takes"},
	ErrValidationImageRef: {KindUsage, "an image reference is malformed"},
	ErrValidationStateDir: {KindUsage, "the state directory cannot be used"},

	ErrValidationNetworkPolicy:  {KindUsage, "a network policy is not one there is"},
	ErrValidationPolicyConflict: {KindUsage, "a network policy that denies everything was given a list"},
	ErrValidationDomain:         {KindUsage, "a domain is malformed"},
	ErrValidationCIDR:           {KindUsage, "a range of addresses is malformed"},
	ErrValidationPort:           {KindUsage, "a port is malformed or out of range"},
	ErrValidationPortConflict:   {KindConflict, "a port of the host is wanted twice, or in use"},
	ErrValidationBandwidth:      {KindUsage, "a bandwidth is malformed or out of range"},
	ErrValidationAddress:        {KindUsage, "an address is malformed"},
	ErrValidationVolume:         {KindUsage, "a volume is not NAME:/PATH, or named twice"},

	ErrNetwork:                 {KindInternal, "the sandbox's network could not be made or changed"},
	ErrNetworkDefaultInterface: {KindUnsupported, "the host has no way to the internet"},
	ErrNetworkPool:             {KindUsage, "the range that sandboxes get addresses from cannot be used here"},
	ErrNetworkUnavailable:      {KindUnsupported, "this host or this user cannot make networks"},

	ErrVMNotFound:       {KindNotFound, "no sandbox has that id, prefix or name"},
	ErrVMAmbiguous:      {KindConflict, "several sandboxes' ids begin with that prefix"},
	ErrVMNameTaken:      {KindConflict, "another sandbox has that name"},
	ErrVMNotStopped:     {KindConflict, "the sandbox would have to be stopped for that"},
	ErrVMNotRunning:     {KindConflict, "the sandbox would have to be running for that"},
	ErrVMBusy:           {KindConflict, "another command is changing the sandbox"},
	ErrVMBoot:           {KindGuest, "the sandbox did not come up"},
	ErrVMDied:           {KindGuest, "the sandbox ended while it was being used"},
	ErrVMRecord:         {KindInternal, "the sandbox's record cannot be read"},
	ErrVMSlotsExhausted: {KindExhausted, "every sandbox number is taken"},

	ErrImageNotFound: {KindNotFound, "no image has that name or digest"},
	ErrImageCorrupt:  {KindInternal, "an image file is not what its digest says"},
	ErrImageInUse:    {KindConflict, "a sandbox uses that image"},
	ErrImageInvalid:  {KindUsage, "the archive is not a root file system that can be imported"},
	ErrKernelInvalid: {KindUsage, "the file is not a Linux kernel that can be used"},

	ErrRegistry:       {KindInternal, "a registry cannot be reached, or fails"},
	ErrRegistryAuth:   {KindPermission, "a registry does not let this user have the image"},
	ErrRegistryBusy:   {KindExhausted, "a registry takes no more requests for now"},
	ErrRegistryConfig: {KindUsage, "registries.json or runtimes.json cannot be used"},

	ErrSnapshotNotFound:  {KindNotFound, "no snapshot has that id, prefix or name"},
	ErrSnapshotAmbiguous: {KindConflict, "several snapshots' ids begin with that prefix"},
	ErrSnapshotNameTaken: {KindConflict, "another snapshot has that name"},
	ErrSnapshotInUse:     {KindConflict, "a sandbox needs that snapshot"},
	ErrSnapshotCorrupt:   {KindInternal, "a snapshot's files are not what its manifest says"},
	ErrSnapshotInvalid:   {KindUsage, "the archive is not a snapshot that can be imported"},
	ErrSnapshotUnfit:     {KindUnsupported, "the snapshot was made on a host or by a version that differs from this one"},

	ErrVolumeNotFound: {KindNotFound, "no volume has that name"},
	ErrVolumeExists:   {KindConflict, "a volume has that name already"},
	ErrVolumeInUse:    {KindConflict, "a sandbox has that volume"},

	ErrTimeoutAgent: {KindTimeout, "the guest did not say ready in time"},
	ErrTimeoutLock:  {KindTimeout, "a lock was held for too long by another vmsan"},
	ErrTimeout:      {KindTimeout, "something took longer than it may"},

	ErrSetupRequired:       {KindSetup, "vmsan setup has not been run for this state directory"},
	ErrSetupMissingBinary:  {KindSetup, "a program vmsan needs is not installed"},
	ErrSetupNoAccelerator:  {KindSetup, "no accelerator could boot the kernel"},
	ErrSetupKVMUnavailable: {KindUnsupported, "KVM was required and does not work here"},
	ErrSetupDownload:       {KindSetup, "something that setup needs could not be fetched"},

	ErrHook:   {KindPermission, "a hook on this host refused, failed or took too long"},
	ErrConfig: {KindUsage, "the config file, or a variable that stands for a flag, cannot be used"},

	ErrUnsupported: {KindUnsupported, "this host or this driver cannot do that"},
	ErrPermission:  {KindPermission, "the user lacks a right that is needed"},
	ErrDiskFull:    {KindExhausted, "the disk is full"},
	ErrHostMemory:  {KindExhausted, "the host has not enough memory left"},

	ErrGuestLink:         {KindGuest, "the connection to the guest broke"},
	ErrGuest:             {KindGuest, "the guest refused or failed"},
	ErrExecNotFound:      {KindNotFound, "the guest has no such program"},
	ErrExecNotExecutable: {KindPermission, "the guest's file cannot be executed"},
	ErrProcessNotFound:   {KindNotFound, "the guest has no such process"},
	ErrFileNotFound:      {KindNotFound, "there is no such file, in the guest or here"},
	ErrFile:              {KindConflict, "a file cannot be read, or be made where it is to be"},
}
