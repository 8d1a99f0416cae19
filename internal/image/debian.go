package image

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"syscall"
	"time"

	"github.com/vmsan/vmsan/api"
	"github.com/vmsan/vmsan/internal/scratch"
)

// DefaultName is the name of the image that setup makes.
const DefaultName = "debian"

// defaultInclude is what the default image has beside Debian's minimal base.
var defaultInclude = []string{"ca-certificates", "curl", "iproute2", "procps", "python3-minimal"}

// fallbackSuite is built where the host is not Debian.
const fallbackSuite = "bookworm"

// epoch is the newest time stamp in a built image: 2023-01-01, in seconds.
// With one that never changes, the same packages make the same image.
const epoch = "1672531200"

// builderGrace is how long a mmdebstrap that was told to end has for it; it
// removes some hundred MB of files first.
const builderGrace = 20 * time.Second

// DebianOptions say what to build.
type DebianOptions struct {
	// Name is the image's name. Optional.
	Name string
	// Suite is a release, such as "bookworm". Default: the host's if that
	// is Debian.
	Suite string
	// Include are packages beside the minimal base. Default: a small set
	// with Python and curl.
	Include []string
	// Mirror is a URL or "deb" line. Default: mmdebstrap's choice.
	Mirror string
	// Progress gets a line of what is being done now and then, from another
	// goroutine than the caller's. Optional.
	Progress func(string)
}

var (
	suiteForm   = regexp.MustCompile(`^[a-z][a-z0-9-]{0,63}$`)
	packageForm = regexp.MustCompile(`^[a-z0-9][a-z0-9+.-]{0,127}(:[a-z0-9]+)?$`)
)

func (o DebianOptions) withDefaults() (DebianOptions, error) {
	if o.Suite == "" {
		o.Suite = hostSuite()
	}
	if len(o.Include) == 0 {
		o.Include = defaultInclude
	}
	if o.Progress == nil {
		o.Progress = func(string) {}
	}
	if !suiteForm.MatchString(o.Suite) {
		return o, api.Errorf(api.ErrValidationChoice, "Debian suite %.100q is malformed", o.Suite)
	}
	for _, p := range o.Include {
		if !packageForm.MatchString(p) {
			return o, api.Errorf(api.ErrValidationChoice, "package name %.100q is malformed", p)
		}
	}
	if strings.HasPrefix(o.Mirror, "-") {
		return o, api.Errorf(api.ErrValidationChoice, "mirror %.100q is malformed", o.Mirror)
	}
	return o, nil
}

// hostSuite returns the release the host runs: os-release(5).
func hostSuite() string {
	data, err := os.ReadFile("/etc/os-release")
	if err != nil {
		return fallbackSuite
	}
	return suiteOf(string(data))
}

func suiteOf(osRelease string) string {
	values := make(map[string]string)
	for line := range strings.Lines(osRelease) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), "=")
		values[key] = strings.Trim(value, `"'`)
	}
	if values["ID"] != "debian" || !suiteForm.MatchString(values["VERSION_CODENAME"]) {
		return fallbackSuite
	}
	return values["VERSION_CODENAME"]
}

// BuildDebian makes an image of Debian packages with mmdebstrap, whose archive
// goes straight into the image. It takes a minute, and the network.
func (s Store) BuildDebian(ctx context.Context, o DebianOptions) (Image, error) {
	o, err := o.withDefaults()
	if err != nil {
		return Image{}, err
	}
	if _, err := exec.LookPath("mmdebstrap"); err != nil {
		return Image{}, api.Errorf(api.ErrSetupMissingBinary, "mmdebstrap is not installed, so vmsan cannot build an image").
			WithHint("apt-get install mmdebstrap")
	}
	dir, err := scratch.New(s.Layout.Tmp(), "image-debian")
	if err != nil {
		return Image{}, scratch.Explain(err)
	}
	defer dir.Close()
	b, err := startBuilder(ctx, o, dir)
	if err != nil {
		return Image{}, fmt.Errorf("build Debian image: %w", err)
	}
	img, err := s.ImportTar(b.ctx, b, Meta{
		Name:   o.Name,
		Source: fmt.Sprintf("mmdebstrap %s, packages: %s", o.Suite, strings.Join(o.Include, " ")),
		Config: Config{Env: []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}, Workdir: "/"},
	})
	if failed := b.stop(); err != nil {
		// The builder's own failure is why the archive was bad, if both were.
		if failed != nil && ctx.Err() == nil && !api.HasCode(err, api.ErrDiskFull) {
			err = failed
		}
		return Image{}, fmt.Errorf("build Debian image: %w", err)
	}
	return img, nil
}

// debianArgs is mmdebstrap's command line. Manuals and translations are left
// out, as in Debian's own container images; licenses stay.
func debianArgs(o DebianOptions) []string {
	args := []string{
		"--variant=minbase",
		"--format=tar",
		"--include=" + strings.Join(o.Include, ","),
		`--aptopt=APT::Install-Recommends "false"`,
		"--dpkgopt=path-exclude=/usr/share/doc/*",
		"--dpkgopt=path-include=/usr/share/doc/*/copyright",
		"--dpkgopt=path-exclude=/usr/share/man/*",
		"--dpkgopt=path-exclude=/usr/share/info/*",
		"--dpkgopt=path-exclude=/usr/share/locale/*",
		"--dpkgopt=path-exclude=/usr/share/lintian/*",
		// mmdebstrap copies the host's, and a guest gets its own at its start.
		`--customize-hook=rm -f "$1/etc/resolv.conf" "$1/etc/hostname"`,
		o.Suite, "-",
	}
	if o.Mirror != "" {
		args = append(args, o.Mirror)
	}
	return args
}

// builder is a running mmdebstrap, and a reader of the archive it writes. At
// the end of the archive Read waits for the process and returns its failure,
// so that no archive of a failed build is taken for a whole one.
type builder struct {
	ctx    context.Context
	cancel context.CancelFunc
	cmd    *exec.Cmd
	out    io.Reader
	// talked is closed when all that mmdebstrap said has been read.
	talked chan struct{}
	errors []string // what it complained about; to be read after talked

	waited bool
	result error
}

func startBuilder(ctx context.Context, o DebianOptions, dir *scratch.Dir) (*builder, error) {
	ctx, cancel := context.WithCancel(ctx)
	b := &builder{ctx: ctx, cancel: cancel, talked: make(chan struct{})}
	b.cmd = exec.CommandContext(ctx, "mmdebstrap", debianArgs(o)...)
	b.cmd.Env = append(os.Environ(), "LC_ALL=C", "SOURCE_DATE_EPOCH="+epoch)
	if os.Geteuid() == 0 {
		// Others' builds run as subordinate uids, which need not have a way
		// through the user's home to the state directory.
		b.cmd.Env = append(b.cmd.Env, "TMPDIR="+dir.Path)
		if err := os.Chmod(dir.Path, 0o755); err != nil {
			cancel()
			return nil, err
		}
	}
	// If vmsan is killed, the directory stays mmdebstrap's until that ends.
	b.cmd.ExtraFiles = []*os.File{dir.Lock()}
	// In a group of its own: it waits for its dpkg and apt-get to end before it
	// ends itself, so those have to be told too.
	b.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	b.cmd.Cancel = func() error { return syscall.Kill(-b.cmd.Process.Pid, syscall.SIGTERM) }
	b.cmd.WaitDelay = builderGrace
	out, err := b.cmd.StdoutPipe()
	if err != nil {
		cancel()
		return nil, err
	}
	talk, err := b.cmd.StderrPipe()
	if err != nil {
		cancel()
		return nil, err
	}
	b.out = out
	if err := b.cmd.Start(); err != nil {
		cancel()
		return nil, err
	}
	go b.listen(talk, o.Progress)
	return b, nil
}

// maxComplaints bounds how many of mmdebstrap's errors are kept.
const maxComplaints = 4

// listen passes on what mmdebstrap says: "I: installing packages...".
func (b *builder) listen(r io.Reader, progress func(string)) {
	defer close(b.talked)
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		line := strings.TrimSpace(lines.Text())
		if doing, ok := strings.CutPrefix(line, "I: "); ok {
			progress(strings.TrimSuffix(doing, "..."))
		}
		if strings.HasPrefix(line, "E: ") && len(b.errors) < maxComplaints {
			b.errors = append(b.errors, line[3:])
		}
	}
	// A line too long for the scanner ends it; the writer must not block.
	io.Copy(io.Discard, r)
}

func (b *builder) Read(p []byte) (int, error) {
	n, err := b.out.Read(p)
	if err != io.EOF {
		return n, err
	}
	if failed := b.wait(); failed != nil {
		return n, failed
	}
	return n, io.EOF
}

// wait may be called again.
func (b *builder) wait() error {
	if b.waited {
		return b.result
	}
	<-b.talked
	err := b.cmd.Wait()
	b.waited = true
	if err != nil {
		b.result = b.failure(err)
	}
	return b.result
}

func (b *builder) failure(err error) error {
	said := strings.Join(b.errors, "; ")
	if strings.Contains(said, "No space left on device") {
		return api.Errorf(api.ErrDiskFull, "mmdebstrap: %s", said)
	}
	if said == "" {
		said = "it did not say why"
	}
	return api.Errorf(api.ErrSetupDownload, "mmdebstrap: %w: %s", err, said).
		WithHint("check the network and apt's sources with: apt-get update")
}

// stop ends the process if it still runs, and returns its failure if it
// failed by itself before.
func (b *builder) stop() error {
	if b.waited {
		b.cancel()
		return b.result
	}
	b.cancel()
	go io.Copy(io.Discard, b.out)
	b.wait()
	return nil
}
