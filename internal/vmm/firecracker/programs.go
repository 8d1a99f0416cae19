package firecracker

import (
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"syscall"
)

// The names of the programs.
const program, jailerProgram = "firecracker", "jailer"

// programs are the paths of both, without links: the jailer names directories
// after what it finds.
type programs struct{ firecracker, jailer string }

// path is what a program is called by.
func (d Driver) path(name string) string { return filepath.Join(d.Dir, name) }

func (d Driver) find() (p programs, err error) {
	if p.firecracker, err = findProgram(d.path(program)); err != nil {
		return p, err
	}
	p.jailer, err = findProgram(d.path(jailerProgram))
	return p, err
}

func findProgram(name string) (string, error) {
	path, err := exec.LookPath(name)
	if err == nil {
		path, err = filepath.EvalSymlinks(path)
	}
	if err != nil {
		return "", fmt.Errorf("find %s: %w", name, err)
	}
	return path, nil
}

// The oldest version that can be used.
const oldestMajor, oldestMinor = 1, 12

// Version runs Firecracker to ask for its version, like "1.12.0", and its
// jailer, which has to be of the same.
func (d Driver) Version(ctx context.Context) (string, error) {
	found, err := askVersion(ctx, d.path(program), "Firecracker")
	if err != nil {
		return "", err
	}
	if found.major < oldestMajor || found.major == oldestMajor && found.minor < oldestMinor {
		return "", fmt.Errorf("version %s of Firecracker is too old: %d.%d is the oldest that can be used", found, oldestMajor, oldestMinor)
	}
	jailer, err := askVersion(ctx, d.path(jailerProgram), "Jailer")
	if err != nil {
		return "", err
	}
	if jailer != found {
		return "", fmt.Errorf("the jailer has version %s, and Firecracker %s: both have to be of one release", jailer, found)
	}
	return found.String(), nil
}

type version struct {
	major, minor int
	text         string
}

func (v version) String() string { return v.text }

var versionLine = regexp.MustCompile(`^([A-Z][a-z]+) v(([0-9]{1,4})\.([0-9]{1,4})\.[0-9A-Za-z.+~-]+)`)

// askVersion asks a program that calls itself title.
func askVersion(ctx context.Context, path, title string) (v version, err error) {
	out, err := exec.CommandContext(ctx, path, "--version").Output()
	if errors.Is(err, syscall.ENOEXEC) {
		err = otherMachine(path, err)
	}
	if err != nil {
		return v, fmt.Errorf("ask %s for its version: %w", path, err)
	}
	found := versionLine.FindSubmatch(out)
	if found == nil || string(found[1]) != title {
		return v, fmt.Errorf("ask %s for its version: it says %.80q", path, out)
	}
	v.text = string(found[2])
	v.major, _ = strconv.Atoi(string(found[3]))
	v.minor, _ = strconv.Atoi(string(found[4]))
	return v, nil
}

// otherMachine says what a program that cannot be run is made for.
func otherMachine(path string, err error) error {
	found, lookErr := exec.LookPath(path)
	if lookErr != nil {
		return err
	}
	file, elfErr := elf.Open(found)
	if elfErr != nil {
		return err
	}
	defer file.Close()
	return fmt.Errorf("%w: it is a program for %s, and this host is %s", err, file.Machine, runtime.GOARCH)
}
