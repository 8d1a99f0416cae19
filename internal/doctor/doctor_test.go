package doctor

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/renameio/v2"

	"github.com/vmsan/vmsan/api"
	"github.com/vmsan/vmsan/internal/setup"
	"github.com/vmsan/vmsan/internal/store"
	"github.com/vmsan/vmsan/internal/testenv"
)

func TestMain(m *testing.M) { os.Exit(testenv.Main(m)) }

// options are for a state directory in which nothing is.
func options(t *testing.T) *Options {
	t.Helper()
	dir := t.TempDir()
	o := &Options{
		Layout:  store.Layout{Dir: filepath.Join(dir, "state"), Run: filepath.Join(dir, "run")},
		VMMs:    []VMM{{"vmm", func(context.Context) (string, error) { return "7.2.22", nil }, "7.2", "install it"}},
		Collect: func(context.Context, bool) (api.Collection, error) { return api.Collection{}, nil },
	}
	if err := o.Layout.Init(); err != nil {
		t.Fatal(err)
	}
	return o
}

// setUp writes what a setup would have found out.
func (o *Options) setUp(t *testing.T, r setup.Record) {
	t.Helper()
	r.Format = 1
	if !r.Pool.IsValid() {
		r.Pool = setup.DefaultPool
	}
	raw, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	// Others may have a link to the old one.
	if err := renameio.WriteFile(o.Layout.SetupRecord(), raw, 0o644); err != nil {
		t.Fatal(err)
	}
}

// look makes one check.
func (o *Options) look(t *testing.T, name string) api.Finding {
	t.Helper()
	o.Checks = []string{name}
	found, err := Run(t.Context(), *o)
	if err != nil || len(found) != 1 || found[0].Check != name {
		t.Fatalf("%s: got %v, %v", name, found, err)
	}
	return found[0]
}

// want makes a check, which has to say so, and to name a command if anything is
// wrong.
func (o *Options) want(t *testing.T, name string, status api.Health, says, remedy string) {
	t.Helper()
	got := o.look(t, name)
	if got.Status != status || !strings.Contains(got.Detail, says) || !strings.Contains(got.Remedy, remedy) {
		t.Errorf("%s: got %+v, want %s with %q and %q", name, got, status, says, remedy)
	}
	if (got.Status == api.HealthPass) != (got.Remedy == "") {
		t.Errorf("%s: %s with the remedy %q", name, got.Status, got.Remedy)
	}
}

// D1: all checks are made, whatever becomes of others, in their order.
func TestAllChecks(t *testing.T) {
	o := options(t)
	var told []string
	o.Found = func(f api.Finding) { told = append(told, f.Check) }
	found, err := Run(t.Context(), *o)
	if err != nil {
		t.Fatal(err)
	}
	var made []string
	for _, f := range found {
		made = append(made, f.Check)
		if f.Detail == "" || !slices.Contains([]api.Health{api.HealthPass, api.HealthWarn, api.HealthFail}, f.Status) {
			t.Errorf("%+v", f)
		}
	}
	for _, got := range [][]string{made, told} {
		if diff := cmp.Diff(Names(), got); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
	}
	for _, needs := range []string{"kvm", "kernel", "images", "pool"} {
		o.want(t, needs, api.HealthFail, "not set up", "vmsan setup")
	}
}

// TestPage: docs/doctor.md has a row for each check.
func TestPage(t *testing.T) {
	page, err := os.ReadFile("../../docs/doctor.md")
	if err != nil {
		t.Fatal(err)
	}
	names := map[string]bool{}
	for _, c := range Checks() {
		if names[c.Name] || c.About == "" {
			t.Errorf("%s: twice, or without a word on what it looks at", c.Name)
		}
		names[c.Name] = true
		if !strings.Contains(string(page), "\n| `"+c.Name+"` | "+c.About+" |") {
			t.Errorf("docs/doctor.md has no row that begins: | `%s` | %s |", c.Name, c.About)
		}
	}
}

// TestStuck: a check that never returns does not keep the others from being
// made, and neither does one that notices that its time is up.
func TestStuck(t *testing.T) {
	forever := make(chan struct{})
	defer close(forever)
	stuck := Check{Name: "stuck", limit: time.Millisecond, look: func(context.Context, *Options) verdict {
		<-forever
		return verdict{}
	}}
	if got := stuck.run(t.Context(), nil); got.status != api.HealthFail || !strings.Contains(got.detail, "longer than 1ms") {
		t.Errorf("got %+v", got)
	}
	slow := Check{Name: "slow", limit: time.Millisecond, look: func(ctx context.Context, _ *Options) verdict {
		<-ctx.Done()
		return pass("as far as there was time")
	}}
	if got := slow.run(t.Context(), nil); got.detail != "as far as there was time" {
		t.Errorf("got %+v", got)
	}
	ended, end := context.WithCancel(t.Context())
	end()
	if _, err := Run(ended, *options(t)); !errors.Is(err, context.Canceled) {
		t.Errorf("after an interruption: %v", err)
	}
}

func TestFixLeftovers(t *testing.T) {
	o := options(t)
	o.want(t, "leftovers", api.HealthPass, "none", "")
	there := []string{"one", "stubborn"}
	stubborn := "it is in use"
	o.Collect = func(_ context.Context, dryRun bool) (c api.Collection, err error) {
		c.Kept = []api.Leftover{{What: "kept", Kept: "it may be another's"}}
		for _, what := range slices.Clone(there) {
			switch {
			case dryRun:
				c.Removed = append(c.Removed, api.Leftover{What: what})
			case what == "stubborn" && stubborn != "":
				c.Failed = append(c.Failed, api.Leftover{What: what, Error: stubborn})
			default:
				c.Removed = append(c.Removed, api.Leftover{What: what})
				there = slices.DeleteFunc(there, func(s string) bool { return s == what })
			}
		}
		return c, nil
	}
	o.want(t, "leftovers", api.HealthWarn, "is left: one; stubborn", "--fix")
	o.Fix = true
	got := o.look(t, "leftovers")
	want := api.Finding{Check: "leftovers", Status: api.HealthFail, Detail: "it is in use", Remedy: "vmsan doctor leftovers --fix",
		Fixed: []string{"removed one"}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	stubborn = ""
	got = o.look(t, "leftovers")
	want = api.Finding{Check: "leftovers", Status: api.HealthPass, Fixed: []string{"removed stubborn"},
		Detail: "what looks like leftovers cannot be proved to be: kept: it may be another's"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	o.Collect = func(context.Context, bool) (api.Collection, error) { return api.Collection{}, errors.New("no netlink") }
	o.want(t, "leftovers", api.HealthFail, "no netlink", "vmsan doctor leftovers")
}
