package cli

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"
	"unicode/utf16"

	"github.com/vmsan/vmsan/api"
	"github.com/vmsan/vmsan/internal/store"
)

// printJSON prints v as the one document of --json. That stdout is closed
// cannot be told to anybody.
func (a *app) printJSON(v any) {
	var text bytes.Buffer
	e := json.NewEncoder(&text)
	e.SetIndent("", "  ")
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		return // of types that are not ours
	}
	io.WriteString(a.stdout, escaped(text.String()))
}

// escaped writes as JSON's escapes what a terminal could obey: JSON itself only
// wants that of the characters below the space. All others are within strings.
func escaped(text string) string {
	plain := func(c rune) bool { return c == '\n' || unicode.IsPrint(c) }
	if !strings.ContainsFunc(text, func(c rune) bool { return !plain(c) }) {
		return text
	}
	var b strings.Builder
	for _, c := range text {
		switch high, low := utf16.EncodeRune(c); {
		case plain(c):
			b.WriteRune(c)
		case high != unicode.ReplacementChar:
			fmt.Fprintf(&b, `\u%04x\u%04x`, high, low)
		default:
			fmt.Fprintf(&b, `\u%04x`, c)
		}
	}
	return b.String()
}

// table prints rows below a header, in columns.
func table(w io.Writer, header string, rows [][]string) {
	t := tabwriter.NewWriter(w, 0, 4, 2, ' ', 0)
	fmt.Fprintln(t, header)
	for _, row := range rows {
		for i, cell := range row {
			if i > 0 {
				fmt.Fprint(t, "\t")
			}
			fmt.Fprint(t, cell)
		}
		fmt.Fprintln(t)
	}
	t.Flush()
}

// emulationWarning is said wherever a sandbox without KVM is shown.
const emulationWarning = "software emulation isolates by QEMU's code alone, which its makers do not call a security boundary; --require-kvm refuses to run this way"

// unprivilegedWarning is said of a sandbox that was started without root.
const unprivilegedWarning = "without root the VMM runs as this user, with its files and network in reach, behind the system call filter alone"

// show turns a record into what the user sees.
func show(r *store.Record) api.VM {
	vm := api.VM{
		ID: r.ID, Name: r.Name, Project: r.Project, Labels: r.Labels,
		Status: r.Status, Reason: r.Reason,
		CreatedAt: r.CreatedAt, StartedAt: timeOrNil(r.StartedAt), StoppedAt: timeOrNil(r.StoppedAt),
		Image: r.Spec.ImageName, ImageDigest: r.Spec.Image, Kernel: r.Spec.Kernel,
		Driver: r.Spec.Driver, Accelerator: r.Spec.Accelerator,
		VCPUs: r.Spec.VCPUs, MemoryMiB: r.Spec.MemoryMiB, MemoryLeftMiB: r.Spec.MemoryLeftMiB, DiskBytes: r.Spec.DiskBytes,
		Network: r.Spec.Network, Init: r.Spec.Init, User: r.Spec.User, Workdir: r.Spec.Workdir, Env: r.Spec.Env,
		Main: r.Spec.Main, Restart: r.Spec.Restart, Volumes: texts(r.Spec.Volumes),
		Trace: r.Trace,
	}
	if r.Spec.Networked() {
		p := showPolicy(r.Spec.Policy)
		vm.NetworkPolicy, vm.Bandwidth = &p, r.Spec.Bandwidth.String()
		vm.Ports, vm.Resolvers = texts(r.Spec.Publications), texts(r.Spec.Resolvers)
	}
	if r.Host.Monitor.PID != 0 {
		vm.PIDs = &api.PIDs{Monitor: r.Host.Monitor.PID, VMM: r.Host.VMM.PID, Gate: r.Host.Gate.PID}
		vm.Isolation = isolation(r)
	}
	if r.Spec.Accelerator == "tcg" {
		vm.Warnings = append(vm.Warnings, emulationWarning)
	}
	if vm.Isolation != nil && !vm.Isolation.Namespaces {
		vm.Warnings = append(vm.Warnings, unprivilegedWarning)
	}
	return vm
}

// isolation is what shuts the VMM of a running sandbox in.
func isolation(r *store.Record) *api.Isolation {
	i := &api.Isolation{
		Boundary: "hardware", Seccomp: !r.Spec.NoSeccomp, Cgroup: len(r.Host.Cgroups) > 0,
		UID: r.Host.UID, Namespaces: r.Host.UID != 0, PIDNamespace: r.Host.UID != 0 && !r.Spec.NoPIDs,
	}
	if len(r.Spec.Filter) > 0 {
		i.SeccompFilter = fmt.Sprintf("sha256:%x", sha256.Sum256(r.Spec.Filter))
	}
	if r.Spec.Accelerator == "tcg" {
		i.Boundary = "emulation"
	}
	if i.UID == 0 {
		// Without root it runs as its owner, whose alone the record is.
		i.UID = uint32(os.Geteuid())
	}
	return i
}

func timeOrNil(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	return &t
}

// ago says how long ago t was, to one unit.
func ago(t time.Time) string {
	d := time.Since(t)
	switch {
	case d < time.Minute:
		return fmt.Sprintf("%ds ago", int(d.Seconds()))
	case d < time.Hour:
		return fmt.Sprintf("%dm ago", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh ago", int(d.Hours()))
	}
	return fmt.Sprintf("%dd ago", int(d.Hours()/24))
}

// printable replaces what could move a terminal's cursor.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return '?'
	}, s)
}

// mebibytes formats a memory or disk size.
func mebibytes(n int64) string {
	if n%1024 == 0 {
		return fmt.Sprintf("%dG", n/1024)
	}
	return fmt.Sprintf("%dM", n)
}

// printTrace prints the stages of a start.
func (a *app) printTrace(stages []api.Stage) {
	var rows [][]string
	for _, s := range stages {
		rows = append(rows, []string{s.Name, fmt.Sprintf("%.1f ms", s.Milliseconds), s.Detail})
	}
	a.talk.Lock()
	defer a.talk.Unlock()
	table(a.stderr, "STAGE\tTIME\tDETAIL", rows)
}
