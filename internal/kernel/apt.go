package kernel

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"time"

	"github.com/vmsan/vmsan/api"
)

// aptOutput bounds how much of what apt-get says is kept for an error.
const aptOutput = 8 << 10

// aptGrace is how long an apt-get that was told to end has for it.
const aptGrace = 5 * time.Second

const noAptHint = "vmsan setup --kernel FILE or --kernel-deb FILE, with a kernel from elsewhere"

// apt fetches packages to dir.
type apt struct {
	dir string
	// private makes apt-get use package lists of its own, in dir, instead of
	// the host's.
	private bool
}

// download fetches the newest cloud kernel's package to below dir.
func download(ctx context.Context, dir string) (string, Source, error) {
	if _, err := exec.LookPath("apt-get"); err != nil {
		return "", Source{}, api.Errorf(api.ErrSetupMissingBinary, "apt-get is not installed, so vmsan cannot fetch a kernel").
			WithHint(noAptHint)
	}
	if err := giveToApt(dir); err != nil {
		return "", Source{}, err
	}
	// The host's lists may be empty, as in containers, or too old to name
	// versions that are still there. Then fresh ones are fetched, to the
	// state directory: the host's are not ours to change.
	path, source, err := apt{dir: dir}.kernel(ctx)
	if err == nil || ctx.Err() != nil {
		return path, source, err
	}
	fresh := apt{dir: dir, private: true}
	stale := fresh.update(ctx)
	path, source, err = fresh.kernel(ctx)
	if err != nil && stale != nil {
		return "", Source{}, stale
	}
	return path, source, err
}

// giveToApt lets apt-get's download processes, which root's apt-get runs as
// _apt, write to dir. Without such a user apt-get downloads as itself.
func giveToApt(dir string) error {
	if err := os.Chmod(dir, 0o755); err != nil {
		return err
	}
	u, err := user.Lookup("_apt")
	if os.Geteuid() != 0 || err != nil {
		return nil
	}
	uid, err := strconv.Atoi(u.Uid)
	if err != nil {
		return fmt.Errorf("user _apt: %w", err)
	}
	return os.Chown(dir, uid, -1)
}

// kernel follows the metapackage, which always depends on the newest kernel,
// to that kernel's own package.
func (a apt) kernel(ctx context.Context) (string, Source, error) {
	meta, err := a.fetch(ctx, "linux-image-cloud-"+runtime.GOARCH)
	if err != nil {
		return "", Source{}, err
	}
	control, err := debControl(meta)
	if err != nil {
		return "", Source{}, invalid(fmt.Errorf("%s: %w", filepath.Base(meta), err))
	}
	name, err := kernelPackage(control)
	if err != nil {
		return "", Source{}, invalid(fmt.Errorf("%s: %w", filepath.Base(meta), err))
	}
	path, err := a.fetch(ctx, name)
	return path, Source{Kind: "apt", Name: name}, err
}

// kernelDepends matches a dependency on a kernel of exactly one version.
var kernelDepends = regexp.MustCompile(`^(linux-image-[0-9][a-z0-9.+-]*) \(= ([0-9][A-Za-z0-9.+~:-]*)\)$`)

// kernelPackage finds in a metapackage's control file the kernel it depends
// on, as "package=version".
func kernelPackage(control string) (string, error) {
	for line := range strings.Lines(control) {
		list, ok := strings.CutPrefix(line, "Depends:")
		if !ok {
			continue
		}
		for dep := range strings.SplitSeq(list, ",") {
			if m := kernelDepends.FindStringSubmatch(strings.TrimSpace(dep)); m != nil {
				return m[1] + "=" + m[2], nil
			}
		}
	}
	return "", errors.New("it depends on no kernel")
}

// fetch downloads a package and returns its path.
func (a apt) fetch(ctx context.Context, name string) (string, error) {
	into, err := os.MkdirTemp(a.dir, "deb-")
	if err != nil {
		return "", err
	}
	if err := giveToApt(into); err != nil {
		return "", err
	}
	if err := a.run(ctx, into, "download", name); err != nil {
		return "", err
	}
	debs, err := filepath.Glob(filepath.Join(into, "*.deb"))
	if err != nil {
		return "", err
	}
	if len(debs) != 1 {
		return "", api.Errorf(api.ErrSetupDownload, "apt-get download %s left %d packages", name, len(debs))
	}
	return debs[0], nil
}

// update fetches package lists to a's own directory. An error need not mean
// that the lists lack the kernel: one dead source of several is enough.
func (a apt) update(ctx context.Context) error {
	for _, d := range []string{"lists/partial", "cache/archives/partial"} {
		if err := os.MkdirAll(filepath.Join(a.dir, d), 0o755); err != nil {
			return err
		}
	}
	if err := giveToApt(filepath.Join(a.dir, "lists", "partial")); err != nil {
		return err
	}
	return a.run(ctx, a.dir, "update")
}

func (a apt) options() []string {
	if !a.private {
		return []string{"-q"}
	}
	return []string{
		"-q",
		"-o", "Dir::State::Lists=" + filepath.Join(a.dir, "lists"),
		"-o", "Dir::Cache=" + filepath.Join(a.dir, "cache"),
		"-o", "APT::Update::Error-Mode=any", // or a dead network is no error
	}
}

func (a apt) run(ctx context.Context, dir string, args ...string) error {
	cmd := exec.CommandContext(ctx, "apt-get", append(a.options(), args...)...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "LC_ALL=C", "DEBIAN_FRONTEND=noninteractive")
	cmd.WaitDelay = aptGrace
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	out, err := cmd.CombinedOutput()
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err != nil {
		return api.Errorf(api.ErrSetupDownload, "apt-get %s: %w: %s", strings.Join(args, " "), err, firstErrors(out)).
			WithHint("check the network and apt's sources with: apt-get update; or: %s", noAptHint)
	}
	return nil
}

// firstErrors picks from what apt-get said the lines that tell what went
// wrong, on one line.
func firstErrors(out []byte) string {
	var picked []string
	for line := range strings.Lines(string(out[:min(len(out), aptOutput)])) {
		line = strings.TrimSpace(line)
		if strings.HasPrefix(line, "E:") || strings.HasPrefix(line, "Err:") {
			picked = append(picked, line)
		}
	}
	if len(picked) == 0 {
		return "it did not say why"
	}
	return strings.Join(picked[:min(len(picked), 3)], "; ")
}
