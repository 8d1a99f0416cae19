// Package setup prepares a state directory for its first sandbox: a kernel, a
// default image, and the knowledge of which accelerator really boots them.
package setup

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/vmsan/vmsan/api"
	"github.com/vmsan/vmsan/internal/fault"
	"github.com/vmsan/vmsan/internal/image"
	"github.com/vmsan/vmsan/internal/kernel"
	"github.com/vmsan/vmsan/internal/scratch"
	"github.com/vmsan/vmsan/internal/store"
)

// Options say what to set up.
type Options struct {
	Layout store.Layout // required
	// Agent is the guest's /init. Required.
	Agent []byte
	// Kernel is a kernel's file, KernelDeb a Debian kernel package; at most
	// one of them. Default: the kernel there is, or else apt's cloud kernel.
	Kernel    string
	KernelDeb string
	// SkipImage leaves out the default image.
	SkipImage bool
	// Debian says how to build the default image; its name is not used.
	Debian image.DebianOptions
	// Accels are the accelerators to try, in order of preference. Required.
	Accels []string
	// VMM is the name and version of the VMM that Probe uses. Required.
	VMM string
	// Probe boots the kernel once under an accelerator, and returns an error
	// if it did not come up. It limits its own time: ErrHung is then part of the
	// error. Required.
	Probe func(ctx context.Context, accel string, k kernel.Kernel) error
	// Pool is where sandboxes get addresses from. Default: the one there is,
	// or DefaultPool.
	Pool netip.Prefix
	// CheckPool tells whether this host can use a pool. Default: it can.
	CheckPool func(netip.Prefix) error
	// Release has a release of Firecracker in place: the one there is, whose
	// name it gets, if that is what was asked for and whole. It returns its
	// name, or "" for the programs in the search path. Optional.
	Release func(ctx context.Context, current string, event func(State, string)) (name string, err error)
	// Firecracker tries a second VMM, with KVM. It returns nil where there is
	// none. Optional.
	Firecracker func(release string) *Second
	// Progress gets events in the order in which things happen, from one
	// goroutine at a time but not always the caller's. Optional.
	Progress func(Event)
	// KeepKernel tells whether something but new sandboxes needs the kernel
	// with a digest. Those it does not need, setup removes when it installs
	// another one. Default: all are kept.
	KeepKernel func(digest string) bool
}

// ErrHung says that a guest was waited for in vain.
var ErrHung = errors.New("the guest did not answer")

// Second is a VMM that may or may not work, beside the first, which has to.
type Second struct {
	VMM   string // its name and version
	Probe func(context.Context, kernel.Kernel) error
}

// Event is progress.
type Event struct {
	Step  Step
	State State
	// Detail is a line of text, such as a version or what is being done.
	Detail string
}

// Step is a part of setup.
type Step string

// The steps, in their order.
const (
	StepLock   Step = "lock"
	StepClean  Step = "clean"
	StepPool   Step = "network"
	StepKernel Step = "kernel"
	// StepFirecracker is left out where nobody asked for a release.
	StepFirecracker Step = "firecracker"
	// StepImage and StepProbe are done at the same time.
	StepImage Step = "image"
	StepProbe Step = "probe"
)

// State is how far a step is.
type State string

// The states. A step begins with Running, perhaps several times with other
// details, or with Kept; it ends with one of the others.
const (
	Running State = "running"
	Done    State = "done"
	Kept    State = "kept" // what there was is fit
	Failed  State = "failed"
)

// Run sets up what is missing or no longer fits, and returns the record of
// it. It may be interrupted anywhere and run again; a second Run waits for a
// first. It writes nothing outside the state directory.
func Run(ctx context.Context, o Options) (Record, error) {
	if err := o.check(); err != nil {
		return Record{}, err
	}
	unlock, err := o.lock(ctx)
	if err != nil {
		return Record{}, err
	}
	defer unlock()
	if err := o.clean(); err != nil {
		return Record{}, err
	}
	// A record that cannot be read is one that has to be made again.
	r, err := load(o.Layout)
	if err != nil {
		r = Record{}
	}
	if err := o.pool(&r); err != nil {
		return r, o.failed(StepPool, err)
	}
	k, err := o.kernel(ctx, &r)
	if err = fault.After("setup: kernel in place", err); err != nil {
		return r, o.failed(StepKernel, err)
	}
	if err := o.release(ctx, &r); err != nil {
		return r, o.failed(StepFirecracker, err)
	}
	return r, o.imageAndProbe(ctx, &r, k)
}

// imageAndProbe has the default image in place and the accelerators tried,
// both at a time: one that does not work may be waited for as long as it takes
// to build the image.
func (o *Options) imageAndProbe(ctx context.Context, r *Record, k kernel.Kernel) error {
	img, err := o.image(ctx)
	if err != nil {
		return o.failed(StepImage, err)
	}
	group, ctx := errgroup.WithContext(ctx)
	step := func(s Step, run func() error) {
		group.Go(func() error {
			err := run()
			if err == nil || ctx.Err() != nil {
				return err
			}
			return o.failed(s, err)
		})
	}
	if img.Digest == "" && !o.SkipImage {
		step(StepImage, func() (err error) {
			img, err = o.buildImage(ctx)
			return err
		})
	}
	step(StepProbe, func() error { return o.probe(ctx, r, k) })
	if err := fault.After("setup: image made and accelerators tried", group.Wait()); err != nil {
		return err
	}
	return o.saveImage(r, img)
}

func (o *Options) check() error {
	if o.Kernel != "" && o.KernelDeb != "" {
		return api.Errorf(api.ErrValidationFlags, "--kernel and --kernel-deb were given together").
			WithHint("give one of them")
	}
	if len(o.Agent) == 0 || o.Probe == nil || len(o.Accels) == 0 {
		return errors.New("set up: options lack the agent, the probe or the accelerators")
	}
	progress := o.Progress
	var reporting sync.Mutex
	o.Progress = func(e Event) {
		reporting.Lock()
		defer reporting.Unlock()
		if progress != nil {
			progress(e)
		}
	}
	if o.CheckPool == nil {
		o.CheckPool = func(netip.Prefix) error { return nil }
	}
	return nil
}

func (o *Options) event(s Step, state State, format string, args ...any) {
	o.Progress(Event{Step: s, State: state, Detail: fmt.Sprintf(format, args...)})
}

func (o *Options) failed(s Step, err error) error {
	o.event(s, Failed, "%v", err)
	return fmt.Errorf("set up %s: %w", s, err)
}

// lockPatience is how long a lock may be busy before that is worth an event.
const lockPatience = 100 * time.Millisecond

func (o *Options) lock(ctx context.Context) (unlock func(), err error) {
	if err := o.makeLockFile(); err != nil {
		return nil, stateDirError(o.Layout.Dir, err)
	}
	quick, cancel := context.WithTimeout(ctx, lockPatience)
	defer cancel()
	unlock, err = scratch.Lock(quick, o.Layout.SetupLock())
	if err == nil || quick.Err() == nil || ctx.Err() != nil {
		return unlock, err
	}
	o.event(StepLock, Running, "another setup is running")
	if unlock, err = scratch.Lock(ctx, o.Layout.SetupLock()); err != nil {
		return nil, o.failed(StepLock, err)
	}
	o.event(StepLock, Done, "")
	return unlock, nil
}

func (o *Options) makeLockFile() error {
	if err := os.MkdirAll(o.Layout.Dir, 0o755); err != nil {
		return err
	}
	f, err := os.OpenFile(o.Layout.SetupLock(), os.O_RDONLY|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	return f.Close()
}

func stateDirError(dir string, err error) error {
	if errors.Is(err, os.ErrPermission) {
		return api.Errorf(api.ErrPermission, "use state directory: %w", err).
			WithHint("run vmsan as the user who owns %s, or give another --dir", dir)
	}
	return scratch.Explain(api.Errorf(api.ErrValidationStateDir, "use state directory: %w", err))
}

// clean removes what interrupted runs left.
func (o *Options) clean() error {
	swept, err := scratch.Sweep(o.Layout.Tmp())
	if len(swept) > 0 {
		o.event(StepClean, Done, "removed %d leftovers of interrupted runs", len(swept))
	}
	if err != nil {
		return o.failed(StepClean, err)
	}
	return nil
}

// pool chooses where sandboxes get addresses from. One that was asked for has
// to fit; with another that does not, sandboxes without a network still work.
func (o *Options) pool(r *Record) error {
	before := r.Pool
	if o.Pool.IsValid() {
		r.Pool = o.Pool
	}
	if !r.Pool.IsValid() {
		r.Pool = DefaultPool
	}
	err := o.CheckPool(r.Pool)
	switch {
	case err != nil && o.Pool.IsValid():
		return api.Errorf(api.ErrNetworkPool, "use %s for sandboxes: %w", o.Pool, err).WithFlag("--network-pool").
			WithHint("vmsan setup --network-pool with a range that nothing on this host uses, like 10.213.0.0/16")
	case err != nil:
		o.event(StepPool, Failed, "%s cannot be used: %v; choose another range with vmsan setup --network-pool", r.Pool, err)
	case r.Pool == before:
		o.event(StepPool, Kept, "addresses from %s", r.Pool)
	default:
		o.event(StepPool, Done, "addresses from %s", r.Pool)
	}
	return r.save(o.Layout)
}

// kernel has a kernel in place that fits what was asked for, with the agent
// there is now.
func (o *Options) kernel(ctx context.Context, r *Record) (kernel.Kernel, error) {
	old, err := o.fittingKernel(r)
	if err != nil {
		return kernel.Kernel{}, err
	}
	if old.AgentDigest == hexSum(o.Agent) {
		o.event(StepKernel, Kept, "%s", old.Version)
		return old, nil
	}
	k, err := o.installKernel(ctx, old)
	if err != nil {
		return kernel.Kernel{}, err
	}
	r.Kernel, r.KernelVersion = k.Digest, k.Version
	if err := r.save(o.Layout); err != nil {
		return kernel.Kernel{}, err
	}
	o.event(StepKernel, Done, "%s", k.Version)
	return k, o.pruneKernels(k.Digest)
}

// fittingKernel returns the kernel there is, if it is whole and what was
// asked for, whatever its agent; or else a Kernel without a digest.
func (o *Options) fittingKernel(r *Record) (kernel.Kernel, error) {
	if r.Kernel == "" {
		return kernel.Kernel{}, nil
	}
	k, err := kernel.Check(o.Layout, r.Kernel)
	if err != nil || !k.Current() {
		// A new one takes its place, whatever is wrong with this one.
		return kernel.Kernel{}, nil
	}
	kind, path := "file", o.Kernel
	if o.KernelDeb != "" {
		kind, path = "deb", o.KernelDeb
	}
	if path == "" {
		return k, nil
	}
	sum, err := kernel.FileDigest(path)
	if err != nil {
		return kernel.Kernel{}, kernelFileError(err)
	}
	if k.Source.Kind != kind || k.Source.SHA256 != sum {
		return kernel.Kernel{}, nil
	}
	return k, nil
}

func kernelFileError(err error) error {
	return api.Errorf(api.ErrKernelInvalid, "read kernel: %w", err)
}

func (o *Options) installKernel(ctx context.Context, old kernel.Kernel) (kernel.Kernel, error) {
	switch {
	case old.Digest != "":
		o.event(StepKernel, Running, "giving kernel %s a new agent", old.Version)
		return kernel.WithAgent(ctx, o.Layout, old, o.Agent)
	case o.Kernel != "":
		o.event(StepKernel, Running, "taking it from %s", o.Kernel)
		return kernel.InstallFile(ctx, o.Layout, o.Kernel, o.Agent)
	case o.KernelDeb != "":
		o.event(StepKernel, Running, "taking it from %s", o.KernelDeb)
		return kernel.InstallDeb(ctx, o.Layout, o.KernelDeb, o.Agent)
	}
	o.event(StepKernel, Running, "downloading it with apt-get")
	return kernel.InstallApt(ctx, o.Layout, o.Agent)
}

// pruneKernels removes the kernels that nothing needs any more.
func (o *Options) pruneKernels(current string) error {
	if o.KeepKernel == nil {
		return nil
	}
	digests, err := kernel.List(o.Layout)
	if err != nil {
		return err
	}
	for _, digest := range digests {
		if digest == current || o.KeepKernel(digest) {
			continue
		}
		if err := kernel.Remove(o.Layout, digest); err != nil {
			return err
		}
	}
	return nil
}

// image returns the default image there is, if it is undamaged and wanted, or
// else an Image without a digest.
func (o *Options) image(ctx context.Context) (image.Image, error) {
	if o.SkipImage {
		return image.Image{}, nil
	}
	img, err := defaultImage(ctx, image.Store{Layout: o.Layout})
	if err == nil && img.Digest != "" {
		o.event(StepImage, Kept, "%s, %.12s", image.DefaultName, img.Digest)
	}
	return img, err
}

func (o *Options) buildImage(ctx context.Context) (image.Image, error) {
	o.event(StepImage, Running, "building it with mmdebstrap")
	build := o.Debian
	build.Name = image.DefaultName
	build.Progress = func(doing string) { o.event(StepImage, Running, "%s", doing) }
	img, err := image.Store{Layout: o.Layout}.BuildDebian(ctx, build)
	if err == nil {
		o.event(StepImage, Done, "%s, %.12s", image.DefaultName, img.Digest)
	}
	return img, err
}

// defaultImage returns the image with the default name if it is undamaged, or
// else an Image without a digest.
func defaultImage(ctx context.Context, images image.Store) (image.Image, error) {
	img, err := images.Resolve(image.DefaultName)
	if err == nil {
		img, err = images.Verify(ctx, img.Digest)
	}
	if api.HasCode(err, api.ErrImageNotFound) || api.HasCode(err, api.ErrImageCorrupt) {
		return image.Image{}, nil
	}
	return img, err
}

func (o *Options) saveImage(r *Record, img image.Image) error {
	if o.SkipImage || r.Image == img.Digest && r.ImageName == image.DefaultName {
		return nil
	}
	r.Image, r.ImageName = img.Digest, image.DefaultName
	return r.save(o.Layout)
}

// probe tries the accelerators that have not been tried on this basis, and
// chooses the first that works.
func (o *Options) probe(ctx context.Context, r *Record, k kernel.Kernel) error {
	basis := Basis{Kernel: k.Digest, VMM: o.VMM, CPU: cpuModel(), Host: hostRelease()}
	var verdicts []Verdict
	for _, accel := range o.Accels {
		v, err := o.tryAccel(ctx, r, accel, basis, k)
		if err != nil {
			return err
		}
		verdicts = append(verdicts, v)
	}
	r.Verdicts, r.Accel = verdicts, firstWorking(verdicts)
	if err := o.trySecond(ctx, r, basis, k); err != nil {
		return err
	}
	if err := r.save(o.Layout); err != nil {
		return err
	}
	if r.Accel == "" {
		return noAccelerator(verdicts)
	}
	return nil
}

// release has Firecracker in place.
func (o *Options) release(ctx context.Context, r *Record) (err error) {
	if o.Release == nil {
		return nil
	}
	event := func(state State, detail string) { o.event(StepFirecracker, state, "%s", detail) }
	if r.FirecrackerRelease, err = o.Release(ctx, r.FirecrackerRelease, event); err != nil {
		return err
	}
	return r.save(o.Layout)
}

// trySecond tries Firecracker, if it is there.
func (o *Options) trySecond(ctx context.Context, r *Record, basis Basis, k kernel.Kernel) error {
	var second *Second
	if o.Firecracker != nil {
		second = o.Firecracker(r.FirecrackerRelease)
	}
	if second == nil {
		r.Firecracker = nil
		return nil
	}
	basis.VMM = second.VMM
	if v := r.Firecracker; v != nil && v.Works && v.Basis == basis {
		o.event(StepProbe, Kept, "%s works", basis.VMM)
		return nil
	}
	v, err := o.boot(ctx, basis.VMM, basis, func() error { return second.Probe(ctx, k) })
	if err != nil {
		return err
	}
	v.Accel, r.Firecracker = "kvm", &v
	return nil
}

func (o *Options) tryAccel(ctx context.Context, r *Record, accel string, basis Basis, k kernel.Kernel) (Verdict, error) {
	// What failed is tried again whenever somebody asks: its cause may be a
	// missing right or device that no basis shows. It was there if the guest ran
	// and hung.
	switch v, ok := r.verdict(accel, basis); {
	case ok && v.Works:
		o.event(StepProbe, Kept, "%s works", accel)
		return v, nil
	case ok && v.Hung == store.BootID():
		o.event(StepProbe, Kept, "%s does not work: %s", accel, v.Reason)
		return v, nil
	}
	v, err := o.boot(ctx, accel, basis, func() error { return o.Probe(ctx, accel, k) })
	v.Accel = accel
	return v, err
}

// boot tries what is called name.
func (o *Options) boot(ctx context.Context, name string, basis Basis, probe func() error) (Verdict, error) {
	o.event(StepProbe, Running, "%s", name)
	start := time.Now()
	err := probe()
	if ctx.Err() != nil {
		return Verdict{}, ctx.Err()
	}
	v := Verdict{
		Works:     err == nil,
		Seconds:   time.Since(start).Seconds(),
		CheckedAt: start.UTC().Truncate(time.Second),
		Basis:     basis,
	}
	if err != nil {
		v.Reason = oneLine(err.Error())
		if errors.Is(err, ErrHung) {
			v.Hung = store.BootID()
		}
		o.event(StepProbe, Done, "%s does not work: %s", name, v.Reason)
		return v, nil
	}
	o.event(StepProbe, Done, "%s works: booted in %.1f s", name, v.Seconds)
	return v, nil
}

func firstWorking(verdicts []Verdict) string {
	for _, v := range verdicts {
		if v.Works {
			return v.Accel
		}
	}
	return ""
}

func noAccelerator(verdicts []Verdict) error {
	reasons := make([]string, 0, len(verdicts))
	for _, v := range verdicts {
		reasons = append(reasons, v.Accel+": "+v.Reason)
	}
	return api.Errorf(api.ErrSetupNoAccelerator, "no accelerator could boot the kernel: %s", strings.Join(reasons, "; ")).
		WithHint("vmsan setup --kernel-deb FILE tries another kernel")
}

// maxReason bounds a reason in bytes.
const maxReason = 300

func oneLine(text string) string {
	line := strings.ToValidUTF8(strings.Join(strings.Fields(text), " "), "?")
	if len(line) <= maxReason {
		return line
	}
	return strings.ToValidUTF8(line[:maxReason], "") + "..."
}

func hexSum(data []byte) string {
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}
