package cli

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"

	"github.com/vmsan/vmsan/api"
	"github.com/vmsan/vmsan/internal/store"
)

// printJSON prints v as the one document of --json. That stdout is closed
// cannot be told to anybody.
func (a *app) printJSON(v any) {
	e := json.NewEncoder(a.stdout)
	e.SetIndent("", "  ")
	e.SetEscapeHTML(false)
	e.Encode(v)
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
		TimeoutMs: r.Spec.Timeout.Milliseconds(), IdleTimeoutMs: r.Spec.IdleTimeout.Milliseconds(), OnTimeout: r.Spec.OnTimeout,
		TimeoutAt: timeOrNil(r.TimeoutAt), TimeoutLeftMs: max(r.TimeoutLeft, 0).Milliseconds(),
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
func ago(t time.Time) string { return roughly(time.Since(t)) + " ago" }

// roughly is a time to one unit.
func roughly(d time.Duration) string {
	switch {
	case d < time.Minute:
		return fmt.Sprintf("%ds", int(d.Seconds()))
	case d < time.Hour:
		return fmt.Sprintf("%dm", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh", int(d.Hours()))
	}
	return fmt.Sprintf("%dd", int(d.Hours()/24))
}

// timeLeft says how long a sandbox may still run.
func timeLeft(r *store.Record) string {
	switch {
	case !r.TimeoutAt.IsZero():
		return "in " + roughly(max(time.Until(r.TimeoutAt), 0))
	case r.TimeoutLeft > 0:
		return roughly(r.TimeoutLeft) + " left"
	}
	return "-"
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
