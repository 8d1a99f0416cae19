package e2e

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/vmsan/vmsan/internal/testenv"
	"github.com/vmsan/vmsan/internal/testenv/lab"
	"github.com/vmsan/vmsan/internal/testenv/probe"
)

// TestPolicies has a real sandbox under each policy try everything in the
// matrix. What a guest sees is half of it: the lab sees what leaves the host
// and who comes to its servers.
func TestPolicies(t *testing.T) {
	h := newHost(t)
	world := testenv.Lab(t)
	m := newMatrix()
	if err := world.Zone.Set(m.zone.String()); err != nil {
		t.Fatal(err)
	}
	program := readBuilt(t, "../internal/testenv/probe/vmsan-probe")
	published := fmt.Sprintf("0.0.0.0:%d:%d", publishedPort, peerPort)
	flags := [][]string{{"--name", peer, "--publish", published}}
	for _, p := range policies {
		flags = append(flags, append([]string{"--name", p.name}, p.flags...))
	}
	h.createNetworked(program, flags...)
	h.must("exec", "--no-stdin", peer, "sh", "-c", fmt.Sprintf("/probe %d >/came 2>&1 & until [ -s /came ]; do sleep 0.1; done", peerPort))

	signs := make([][]byte, len(m.rows))
	for column, policy := range policies {
		good := !t.Failed()
		results, seen := h.tryAll(world, m, column)
		for i, r := range m.rows {
			sign := judge(r, results[i], seen)
			signs[i] = append(signs[i], sign)
			if sign != r.want[column] {
				t.Errorf("%s, %s: got %c, want %c: the guest got %q, error %q",
					policy.name, r.Name, sign, r.want[column], results[i].Answer, results[i].Error)
			}
		}
		checkFlows(t, policy.name, seen)
		if good && t.Failed() {
			t.Logf("the network log of %s:\n%s", policy.name, h.must("network", "log", policy.name))
		}
	}
	t.Logf("what becomes of a probe: + reached, - stopped, g answered by vmsan\n%s", table(m, signs))
	if came := h.must("exec", "--no-stdin", peer, "cat", "/came"); came != "ready" {
		t.Errorf("another sandbox was reached:\n%s", came)
	}
	// It would have answered: the host reaches it by the port it published.
	here := netip.AddrPortFrom(lab.HostLAN, publishedPort).String()
	got := probe.Task{Probes: []probe.Probe{{Kind: probe.TCP, To: here, Wait: patience}}}.Run(t.Context())[0]
	if !got.Answered {
		t.Errorf("the published port does not answer the host: %s", got.Error)
	}
	t.Logf("%d probes under %d policies", len(m.rows), len(policies))
}

// judge makes a sign of what the guest got and what the lab saw.
func judge(r row, result probe.Result, e evidence) byte {
	seen := r.seen != nil && r.seen(e)
	answered := result.Answered
	if r.Kind == probe.Frames && r.Port == 0 {
		answered = seen // there is nothing to wait for
	}
	switch {
	case answered && seen:
		return reached
	case answered:
		return gated
	case seen:
		return '!' // it got somewhere, and had no answer
	}
	return stopped
}

// checkFlows is for all probes at once: what no policy lets out, and that
// deny-all lets out nothing.
func checkFlows(t *testing.T, policy string, e evidence) {
	t.Helper()
	for flow, n := range e.flows {
		if flow.From != lab.Uplink {
			t.Errorf("%s: %d packets left that are not from the host's own address: %s", policy, n, flow)
		}
		if flow.To.IsPrivate() || flow.To.IsLoopback() || flow.To.IsMulticast() || flow.To.IsLinkLocalUnicast() {
			t.Errorf("%s: %d packets left for an address that is not public: %s", policy, n, flow)
		}
		if policy == "deny-all" {
			t.Errorf("%s: %d packets left: %s", policy, n, flow)
		}
	}
}

func table(m *matrix, signs [][]byte) string {
	var text strings.Builder
	fmt.Fprintf(&text, "%-50s", "")
	for _, policy := range policies {
		fmt.Fprintf(&text, "%10s", policy.name)
	}
	for i, r := range m.rows {
		fmt.Fprintf(&text, "\n%-50s", r.Name)
		for _, sign := range signs[i] {
			fmt.Fprintf(&text, "%10c", sign)
		}
	}
	return text.String()
}

// tryAll has the sandbox of a policy try all rows.
func (h *host) tryAll(world *lab.Lab, m *matrix, column int) ([]probe.Result, evidence) {
	h.t.Helper()
	links := h.linksOf(policies[column].name)
	others := h.linksOf(peer)
	here := strings.NewReplacer(ownLink+":", links[0]+":", ownUplink+":", links[1]+":", peerLink+":", others[0]+":", peer+":", others[1]+":")
	task := probe.Task{CA: world.CA.PEM()}
	for _, r := range m.rows {
		p := r.Probe
		p.To, p.Wait = here.Replace(p.To), r.wait(column)
		task.Probes = append(task.Probes, p)
	}
	world.Hits.Reset()
	capture, err := world.Watch()
	if err != nil {
		h.t.Fatal(err)
	}
	defer capture.Close()
	results := h.probe(policies[column].name, task)
	flows, err := capture.Flows()
	if err != nil {
		h.t.Fatal(err)
	}
	return results, evidence{flows, world.Hits.All(), netip.MustParseAddr(links[0])}
}
