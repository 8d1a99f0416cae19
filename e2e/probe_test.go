package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"

	"golang.org/x/sync/errgroup"

	"github.com/vmsan/vmsan/internal/testenv/probe"
)

// probe runs a task in a sandbox.
func (h *host) probe(name string, task probe.Task) []probe.Result {
	h.t.Helper()
	results, err := h.tryProbe(h.t.Context(), name, task)
	if err != nil {
		h.t.Fatal(err)
	}
	return results
}

// probeOne is probe for a single one.
func (h *host) probeOne(name string, p probe.Probe) probe.Result {
	h.t.Helper()
	return h.probe(name, probe.Task{Probes: []probe.Probe{p}})[0]
}

// tryProbe is probe for any goroutine.
func (h *host) tryProbe(ctx context.Context, name string, task probe.Task) (results []probe.Result, err error) {
	input, err := json.Marshal(task)
	if err != nil {
		return nil, err
	}
	out, err := h.exec(ctx, bytes.NewReader(input), name, "/probe")
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(out, &results); err != nil || len(results) != len(task.Probes) {
		return nil, fmt.Errorf("the probes of %s: %w: %q", name, err, out)
	}
	return results, nil
}

// linksOf are the two addresses of a sandbox's link: the host's end and the
// sandbox's.
func (h *host) linksOf(name string) [2]string {
	h.t.Helper()
	link, err := net.InterfaceByName("vmsan" + strings.TrimPrefix(h.idOf(name), "vm"))
	if err != nil {
		h.t.Fatal(err)
	}
	addresses, err := link.Addrs()
	if err != nil {
		h.t.Fatal(err)
	}
	for _, a := range addresses {
		if prefix, err := netip.ParsePrefix(a.String()); err == nil && prefix.Addr().Is4() {
			return [2]string{prefix.Addr().String(), prefix.Addr().Next().String()}
		}
	}
	h.t.Fatalf("%s has no address", link.Name)
	return [2]string{}
}

func (h *host) idOf(name string) string {
	h.t.Helper()
	var vm struct{ ID string }
	if err := json.Unmarshal([]byte(h.must("inspect", "--json", name)), &vm); err != nil {
		h.t.Fatal(err)
	}
	return vm.ID
}

// exec runs a command in a sandbox with an input.
func (h *host) exec(ctx context.Context, input io.Reader, args ...string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	cmd := h.command(ctx, append([]string{"exec"}, args...)...)
	cmd.Stdin = input
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("exec %v: %w: %s", args, err, &stderr)
	}
	return out, nil
}

// createNetworked makes sandboxes at once, each with the probe in it. Flags
// begin with --name.
func (h *host) createNetworked(program []byte, flags ...[]string) {
	h.t.Helper()
	var all errgroup.Group
	all.SetLimit(2) // as many as there are processors to boot on
	for _, f := range flags {
		all.Go(func() error {
			_, err := h.vmsan(append([]string{"create", "--no-setup", "--memory", "192m"}, f...)...)
			return err
		})
	}
	if err := all.Wait(); err != nil {
		h.t.Fatal(err)
	}
	for _, f := range flags {
		_, err := h.exec(h.t.Context(), bytes.NewReader(program), f[1], "sh", "-c", "cat >/probe && chmod +x /probe")
		if err != nil {
			h.t.Fatal(err)
		}
	}
}
