package sandbox

import (
	"fmt"
	"net/netip"
	"os"
	"path"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/vmsan/vmsan/api"
	"github.com/vmsan/vmsan/internal/policy"
	"github.com/vmsan/vmsan/internal/store"
)

// CreateOptions say what a new sandbox is to be. Zero values mean the
// defaults.
type CreateOptions struct {
	Image   string            // reference; default: what setup made
	Name    string            // unique; default: none
	Project string            // a label that the reference system had
	Labels  map[string]string // the user's own

	VCPUs     int   // 1..32; default 1
	MemoryMiB int   // 64..; default 256
	DiskBytes int64 // of the overlay; default 10 GiB
	DiskRate  int64 // bytes a second, of each disk; 0: no limit
	DiskIOPS  int64 // reads and writes a second, of each disk; 0: no limit

	Volumes []store.Mount // made on demand, if they are written to

	Env     map[string]string // of every command
	Workdir string            // of every command; absolute
	User    string            // of every command: name or uid

	Entrypoint bool   // what the image says is the main process, which the sandbox ends with
	Restart    string // of the main process: no, always, on-failure, on-failure:N; always also starts the sandbox with the host; default no

	Init        bool   // the image's own init becomes PID 1
	Driver      string // auto, firecracker, qemu
	Accelerator string // auto, kvm, tcg
	RequireKVM  bool   // refuse to run without
	Overcommit  bool   // start whether or not the host has room
	NoSeccomp   bool
	Filter      string // file of system call filters in the VMM's own format, or its JSON
	NoCgroup    bool
	NoPIDs      bool // no process namespace for the VMM

	Network      string // nat, none; default: nat for root, and where anything of a network is asked for
	Policy       policy.Policy
	Publications []policy.Publication
	Resolvers    []netip.AddrPort // default: the host's
	Bandwidth    policy.Bandwidth

	// Snapshot is what the sandbox goes on from; what the machine is made of
	// is then the snapshot's.
	Snapshot string
	// Cold sandboxes boot, and neither use nor make a template.
	Cold bool

	BootTimeout time.Duration // default 2 minutes
	Timeout     time.Duration // how long it may run from each start; 0: no limit
	IdleTimeout time.Duration // how long it may be idle; 0: no limit
	OnTimeout   string        // then: stop, pause, snapshot, remove; default stop
	// Ephemeral sandboxes are removed when they stop, and stop when the
	// caller that holds them dies.
	Ephemeral bool

	// internal sandboxes are vmsan's own.
	internal bool
	// First is the other end of a stream to the guest that is there before
	// the guest is; see FirstClient. Create does not close it. Optional.
	First *os.File
}

// The defaults and bounds of options.
const (
	DefaultVCPUs       = 1
	MaxVCPUs           = 32
	DefaultMemoryMiB   = 256
	MinMemoryMiB       = 64
	MaxMemoryMiB       = 1 << 20
	DefaultDisk        = 10 << 30
	MinDisk            = 16 << 20
	MaxDisk            = 16 << 40
	minDiskRate        = 1 << 20
	maxDiskRate        = 1 << 40
	minDiskIOPS        = 10
	maxDiskIOPS        = 10_000_000
	DefaultBootTimeout = 2 * time.Minute
	maxBootTimeout     = time.Hour
	maxLabels          = 64
	maxLabel           = 256
	maxEnv             = 64 << 10
	maxProject         = 128
	initPath           = "/sbin/init"
)

// Check checks everything that can be checked without looking at the host.
func (o CreateOptions) Check() error { return o.complete() }

// complete fills in the defaults and checks o.
func (o *CreateOptions) complete() error {
	setDefault(&o.VCPUs, DefaultVCPUs)
	setDefault(&o.MemoryMiB, DefaultMemoryMiB)
	setDefault(&o.DiskBytes, DefaultDisk)
	setDefault(&o.Driver, "auto")
	setDefault(&o.Accelerator, "auto")
	setDefault(&o.BootTimeout, DefaultBootTimeout)
	for _, check := range []func() error{
		func() error { return checkInteger("--vcpus", o.VCPUs, 1, MaxVCPUs, "") },
		func() error { return checkInteger("--memory", o.MemoryMiB, MinMemoryMiB, MaxMemoryMiB, " MiB") },
		func() error { return checkDisk(o.DiskBytes) },
		func() error { return checkDiskLimits(o.DiskRate, o.DiskIOPS) },
		func() error { return checkName("--name", o.Name) },
		func() error { return checkProject(o.Project) },
		func() error { return checkLabels(o.Labels) },
		func() error { return CheckEnv(o.Env) },
		func() error { return CheckWorkdir(o.Workdir) },
		func() error { return CheckUser(o.User) },
		func() error { return o.checkRestart() },
		func() error { return o.checkVolumes() },
		func() error { return checkChoice("--driver", o.Driver, "auto", "firecracker", "qemu") },
		func() error { return checkChoice("--accel", o.Accelerator, "auto", "kvm", "tcg") },
		func() error { return o.completeNetwork() },
		func() error { return CheckBootTimeout(o.BootTimeout) },
		func() error { return o.checkLimits() },
		func() error { return o.checkKVM() },
		func() error { return o.checkFilter() },
	} {
		if err := check(); err != nil {
			return err
		}
	}
	return nil
}

func setDefault[T comparable](value *T, def T) {
	var zero T
	if *value == zero {
		*value = def
	}
}

func (o *CreateOptions) checkKVM() error {
	if o.Driver == "firecracker" && o.Accelerator == "tcg" {
		return api.Errorf(api.ErrValidationFlags, "Cannot use --driver firecracker and --accel tcg together: Firecracker needs KVM").
			WithFlag("--driver").WithHint("use either --driver firecracker or --accel tcg")
	}
	if o.RequireKVM && o.Accelerator == "tcg" {
		return api.Errorf(api.ErrValidationFlags, "Cannot use --require-kvm and --accel tcg together").
			WithFlag("--require-kvm").WithHint("use either --require-kvm or --accel tcg")
	}
	return nil
}

var restartForm = regexp.MustCompile(`^(no|always|on-failure(:[1-9][0-9]{0,5})?)?$`)

func (o *CreateOptions) checkRestart() error {
	if !restartForm.MatchString(o.Restart) {
		return api.Errorf(api.ErrValidationChoice, "Invalid --restart: %.80q. Must be one of: no, always, on-failure, "+
			"on-failure:N.", o.Restart).WithFlag("--restart")
	}
	if o.Restart == "no" {
		o.Restart = ""
	}
	if o.Restart != "" && o.Restart != "always" && !o.Entrypoint {
		return api.Errorf(api.ErrValidationFlags, "--restart %s does nothing without --entrypoint", o.Restart).WithFlag("--restart").
			WithHint("--entrypoint, or --restart always to have the sandbox started with the host")
	}
	return nil
}

func checkInteger(flag string, value, low, high int, unit string) error {
	if value < low || value > high {
		return api.Errorf(api.ErrValidationInteger, "Invalid %s: \"%d\". Must be an integer between %d and %d%s.",
			flag, value, low, high, unit).WithFlag(flag)
	}
	return nil
}

func checkDisk(bytes int64) error {
	if bytes < MinDisk || bytes > MaxDisk || bytes%4096 != 0 {
		return api.Errorf(api.ErrValidationDiskSize,
			"Invalid --disk: %d bytes. Must be a multiple of 4096 between 16 MiB and 16 TiB.", bytes).WithFlag("--disk")
	}
	return nil
}

// checkDiskLimits checks what a guest may do to each of its disks in a second.
// With less than the least it would not boot in its time.
func checkDiskLimits(rate, iops int64) error {
	if rate != 0 && (rate < minDiskRate || rate > maxDiskRate) {
		return api.Errorf(api.ErrValidationDiskSize, "Invalid --disk-rate: %d bytes a second. Must be between 1m and 1t.", rate).
			WithFlag("--disk-rate")
	}
	if iops != 0 && (iops < minDiskIOPS || iops > maxDiskIOPS) {
		return api.Errorf(api.ErrValidationInteger, "Invalid --disk-iops: \"%d\". Must be an integer between %d and %d.", iops,
			minDiskIOPS, maxDiskIOPS).WithFlag("--disk-iops")
	}
	return nil
}

// checkName checks a sandbox's name; what is what the user calls it.
func checkName(what, name string) error {
	if name == "" {
		return nil
	}
	if !store.ValidName(name) {
		return api.Errorf(api.ErrValidationName, "Invalid %s: %.80q. Must be 1 to 63 letters, digits, dots, "+
			"dashes and underscores, beginning with a letter or digit.", what, name).WithFlag(what)
	}
	if store.ValidID(name) {
		return api.Errorf(api.ErrValidationName, "Invalid %s: %q. It has the form of an id.", what, name).WithFlag(what)
	}
	return nil
}

var validProject = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_./-]*$`)

func checkProject(project string) error {
	if project != "" && (len(project) > maxProject || !validProject.MatchString(project)) {
		return api.Errorf(api.ErrValidationLabel, "Invalid --project: %.80q. Must be up to %d letters, digits, dots, "+
			"dashes, slashes and underscores.", project, maxProject).WithFlag("--project")
	}
	return nil
}

var (
	validLabelKey   = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_./-]*$`)
	validLabelValue = regexp.MustCompile(`^[a-zA-Z0-9_./:@+ -]*$`)
)

func checkLabels(labels map[string]string) error {
	if len(labels) > maxLabels {
		return api.Errorf(api.ErrValidationLabel, "Invalid --label: %d labels. At most %d.", len(labels), maxLabels).
			WithFlag("--label")
	}
	for key, value := range labels {
		if len(key) > maxLabel || len(value) > maxLabel || !validLabelKey.MatchString(key) || !validLabelValue.MatchString(value) {
			return api.Errorf(api.ErrValidationLabel, "Invalid --label: %.80q. Must be KEY=VALUE of letters, digits "+
				"and ./-_ (in values also :@+ and spaces), up to %d each.", key+"="+value, maxLabel).WithFlag("--label")
		}
	}
	return nil
}

var validEnvName = regexp.MustCompile(`^[a-zA-Z_][a-zA-Z0-9_]*$`)

// CheckEnv checks an environment: names of letters, digits and underscores,
// values without NUL, 64 KiB in all.
func CheckEnv(env map[string]string) error {
	for name, value := range env {
		if !validEnvName.MatchString(name) || strings.ContainsRune(value, 0) {
			return api.Errorf(api.ErrValidationEnv, "Invalid --env: %.80q. Must be KEY=VALUE, the key of letters, "+
				"digits and underscores.", name).WithFlag("--env")
		}
	}
	return checkEnvSize(env)
}

func checkEnvSize(env map[string]string) error {
	size := 0
	for name, value := range env {
		size += len(name) + len(value) + 2
	}
	if size > maxEnv {
		return api.Errorf(api.ErrValidationEnv, "Invalid --env: %d bytes in all. At most %d.", size, maxEnv).WithFlag("--env")
	}
	return nil
}

// CheckWorkdir checks the path of a working directory in the guest.
func CheckWorkdir(dir string) error {
	if dir == "" {
		return nil
	}
	if !path.IsAbs(dir) || len(dir) > 4095 || strings.ContainsRune(dir, 0) {
		return api.Errorf(api.ErrValidationPath, "Invalid --workdir: %.80q. Must be an absolute path.", dir).
			WithFlag("--workdir")
	}
	return nil
}

var validUser = regexp.MustCompile(`^([a-zA-Z_][a-zA-Z0-9_.-]{0,31}|[0-9]{1,10})(:([a-zA-Z_][a-zA-Z0-9_.-]{0,31}|[0-9]{1,10}))?$`)

// CheckUser checks a user of the guest: a name or a number, perhaps with a
// group after a colon.
func CheckUser(user string) error {
	if user != "" && !validUser.MatchString(user) {
		return api.Errorf(api.ErrValidationUser, "Invalid --user: %.80q. Must be a name or a number, optionally "+
			"followed by a colon and a group.", user).WithFlag("--user")
	}
	return nil
}

func checkChoice(flag, value string, choices ...string) error {
	for _, c := range choices {
		if value == c {
			return nil
		}
	}
	return api.Errorf(api.ErrValidationChoice, "Invalid %s: %.80q. Must be one of: %s.", flag, value,
		strings.Join(choices, ", ")).WithFlag(flag)
}

// CheckBootTimeout checks how long a guest may take to come up.
func CheckBootTimeout(d time.Duration) error {
	if d < time.Second || d > maxBootTimeout {
		return api.Errorf(api.ErrValidationDuration, "Invalid --boot-timeout: %s. Must be between 1s and %s.", d,
			maxBootTimeout).WithFlag("--boot-timeout")
	}
	return nil
}

// ParseVCPUs reads a number of virtual CPUs.
func ParseVCPUs(text string) (int, error) {
	n, err := strconv.Atoi(text)
	if err != nil || text[0] == '+' {
		return 0, api.Errorf(api.ErrValidationInteger, "Invalid --vcpus: %.80q. Must be an integer between 1 and %d.",
			text, MaxVCPUs).WithFlag("--vcpus")
	}
	return n, checkInteger("--vcpus", n, 1, MaxVCPUs, "")
}

// durationPattern has at most 9 digits for each unit, which no sum of them
// makes too large for a time.Duration.
var durationPattern = regexp.MustCompile(`^(?:([0-9]{1,5})d)?(?:([0-9]{1,6})h)?(?:([0-9]{1,8})m)?(?:([0-9]{1,9})s)?(?:([0-9]{1,9})ms)?$`)

var durationUnits = []time.Duration{24 * time.Hour, time.Hour, time.Minute, time.Second, time.Millisecond}

var plainSeconds = regexp.MustCompile(`^[0-9]{1,9}$`)

// ParseDuration reads a time as a user types it: "1h30m", "1d", "500ms", or a
// bare number of seconds. flag is where it was typed.
func ParseDuration(flag, text string) (time.Duration, error) {
	lower := strings.ToLower(text)
	if plainSeconds.MatchString(lower) {
		lower += "s"
	}
	m := durationPattern.FindStringSubmatch(lower)
	if m == nil || lower == "" {
		return 0, api.Errorf(api.ErrValidationDuration, "Invalid %s: %.80q. Use format like \"1h\", \"30m\", \"2h30m\", "+
			"or plain seconds.", flag, text).WithFlag(flag)
	}
	var d time.Duration
	for i, digits := range m[1:] {
		n, _ := strconv.Atoi("0" + digits)
		d += time.Duration(n) * durationUnits[i]
	}
	return d, nil
}

var sizePattern = regexp.MustCompile(`^([0-9]{1,15})(b|k|kb|kib|m|mb|mib|g|gb|gib|t|tb|tib)?$`)

var sizeUnits = map[byte]int64{'b': 1, 'k': 1 << 10, 'm': 1 << 20, 'g': 1 << 30, 't': 1 << 40}

// parseSize reads "512m", "10gb" or "2GiB" as powers of two; a bare number
// counts in unit.
func parseSize(text string, unit int64) (int64, error) {
	m := sizePattern.FindStringSubmatch(strings.ToLower(text))
	if m == nil {
		return 0, fmt.Errorf("not a size")
	}
	n, err := strconv.ParseInt(m[1], 10, 64)
	if err != nil {
		return 0, err
	}
	if m[2] != "" {
		unit = sizeUnits[m[2][0]]
	}
	if n > (1<<62)/unit {
		return 0, fmt.Errorf("too large")
	}
	return n * unit, nil
}

// ParseMemory reads a memory size as a user types it, "512", "512m" or "2g",
// into MiB. A bare number is MiB.
func ParseMemory(text string) (int, error) {
	bytes, err := parseSize(text, 1<<20)
	if err != nil || bytes%(1<<20) != 0 || bytes < MinMemoryMiB<<20 || bytes > MaxMemoryMiB<<20 {
		return 0, api.Errorf(api.ErrValidationMemory, "Invalid --memory: %.80q. Must be MiB, or a size like 512m or "+
			"2g, between %d MiB and %d MiB.", text, MinMemoryMiB, MaxMemoryMiB).WithFlag("--memory")
	}
	return int(bytes >> 20), nil
}

// ParseDisk reads a disk size as a user types it, "10", "10gb" or "512m",
// into bytes. A bare number is GiB. flag is where it was typed.
func ParseDisk(flag, text string) (int64, error) {
	bytes, err := parseSize(text, 1<<30)
	if err != nil || bytes < MinDisk || bytes > MaxDisk || bytes%4096 != 0 {
		return 0, api.Errorf(api.ErrValidationDiskSize, "Invalid %s: %.80q. Expected GiB, or a size like 10gb or "+
			"512m, between 16m and 16t.", flag, text).WithFlag(flag)
	}
	return bytes, nil
}

// ParseDiskRate reads bytes a second as a user types them, "50m" or "1gb". A bare
// number is MiB.
func ParseDiskRate(text string) (int64, error) {
	bytes, err := parseSize(text, 1<<20)
	if err == nil && bytes != 0 {
		err = checkDiskLimits(bytes, 0)
	}
	if err != nil || bytes == 0 {
		return 0, api.Errorf(api.ErrValidationDiskSize, "Invalid --disk-rate: %.80q. Expected MiB a second, or a size like 50m or "+
			"1gb, between 1m and 1t.", text).WithFlag("--disk-rate")
	}
	return bytes, nil
}

// ParseDiskIOPS reads a number of reads and writes a second.
func ParseDiskIOPS(text string) (int64, error) {
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil || n == 0 || text[0] == '+' {
		return 0, api.Errorf(api.ErrValidationInteger, "Invalid --disk-iops: %.80q. Must be an integer between %d and %d.", text,
			minDiskIOPS, maxDiskIOPS).WithFlag("--disk-iops")
	}
	return n, checkDiskLimits(0, n)
}

// ParseTotal reads the size of many things together; a bare number is GiB.
func ParseTotal(flag, text string) (int64, error) {
	bytes, err := parseSize(text, 1<<30)
	if err != nil {
		return 0, api.Errorf(api.ErrValidationDiskSize, "Invalid %s: %.80q. Expected GiB, or a size like 10gb or 512m.", flag, text).
			WithFlag(flag)
	}
	return bytes, nil
}

// ParsePairs reads KEY=VALUE arguments into a map; malformed is called for
// one that is none.
func ParsePairs(args []string, malformed func(arg string) error) (map[string]string, error) {
	pairs := map[string]string{}
	for _, arg := range args {
		key, value, ok := strings.Cut(arg, "=")
		if !ok || key == "" {
			return nil, malformed(arg)
		}
		pairs[key] = value
	}
	return pairs, nil
}
