package denials

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
	"unicode"

	"github.com/google/go-cmp/cmp"

	"github.com/vmsan/vmsan/api"
	"github.com/vmsan/vmsan/internal/testenv"
)

// Who is to be told of denials hears of those alone, merged as in the log.
func TestTellsOfDenials(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var p page
		var told []api.NetworkEvent
		l := New(&p, func(e api.NetworkEvent) { told = append(told, e) })
		for range 50 {
			l.Log(api.NetworkEvent{Verdict: api.VerdictDenied, Kind: api.EventDNS, Name: "no.example"})
			l.Log(api.NetworkEvent{Verdict: api.VerdictAllowed, Kind: api.EventDNS, Name: "yes.example"})
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		count := 0
		for _, e := range told {
			if e.Verdict != api.VerdictDenied || e.Name != "no.example" {
				t.Errorf("told of %v", e)
			}
			count += e.Count
		}
		if count != 50 || len(told) > 2 {
			t.Errorf("told of %d in %d events", count, len(told))
		}
	})
}

func TestMain(m *testing.M) { os.Exit(testenv.Main(m)) }

// page is what was written.
type page struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (p *page) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.text.Write(b)
}

// events reads what was written, and takes it away.
func (p *page) events(t *testing.T) (events []api.NetworkEvent) {
	t.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	for line := range strings.Lines(p.text.String()) {
		var e api.NetworkEvent
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		e.Time = time.Time{}
		events = append(events, e)
	}
	p.text.Reset()
	return events
}

func flow(port uint16, count int) api.NetworkEvent {
	return api.NetworkEvent{
		Verdict: api.VerdictDenied, Kind: api.EventFlow, Protocol: "tcp",
		Destination: netip.MustParseAddr("203.0.113.9"), Port: port, Rule: "policy", Count: count,
	}
}

func TestEventIsWrittenAtOnceAndItsRepeatsLater(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var p page
		l := New(&p, nil)
		defer l.Close()
		for range 5 {
			l.Log(flow(443, 0))
		}
		l.Log(flow(80, 0))
		synctest.Wait()
		if diff := cmp.Diff([]api.NetworkEvent{flow(443, 1), flow(80, 1)}, p.events(t), cmp.Comparer(sameAddr)); diff != "" {
			t.Errorf("at once: %s", diff)
		}
		time.Sleep(mergeTime)
		synctest.Wait()
		if diff := cmp.Diff([]api.NetworkEvent{flow(443, 4)}, p.events(t), cmp.Comparer(sameAddr)); diff != "" {
			t.Errorf("after a second: %s", diff)
		}
		time.Sleep(2 * mergeTime)
		l.Log(flow(443, 0))
		synctest.Wait()
		if diff := cmp.Diff([]api.NetworkEvent{flow(443, 1)}, p.events(t), cmp.Comparer(sameAddr)); diff != "" {
			t.Errorf("after a pause: %s", diff)
		}
	})
}

func sameAddr(a, b netip.Addr) bool { return a == b }

func TestFloodIsCountedInFewLines(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var p page
		l := New(&p, nil)
		const packets, seconds = 10_000, 5
		for range seconds {
			for i := range packets {
				l.Log(flow(uint16(i), 0))
			}
			allowed := flow(1, 0)
			allowed.Verdict = api.VerdictAllowed
			l.Log(allowed)
			time.Sleep(mergeTime + time.Millisecond)
		}
		l.Close()
		total, lines, others := 0, 0, 0
		for _, e := range p.events(t) {
			if e.Verdict == api.VerdictAllowed {
				others += e.Count
				continue
			}
			lines++
			total += e.Count
		}
		if total != packets*seconds {
			t.Errorf("%d packets are in the log, of %d", total, packets*seconds)
		}
		if most := 2 * seconds * (maxDistinct + 1); lines > most {
			t.Errorf("%d lines, more than %d", lines, most)
		}
		if others != seconds {
			t.Errorf("a flood of one verdict kept %d events of another out", seconds-others)
		}
	})
}

func TestNothingIsWrittenThatATerminalObeys(t *testing.T) {
	var p page
	l := New(&p, nil)
	l.Log(api.NetworkEvent{Name: "a\x1b[2Jb\u202e\xffc" + strings.Repeat("x", 1000), Rule: "r\n", Hint: "h\t", Protocol: "\x00"})
	l.Close()
	e := p.events(t)[0]
	for _, text := range []string{e.Name, e.Rule, e.Hint, e.Protocol} {
		if strings.ContainsFunc(text, func(c rune) bool { return !unicode.IsPrint(c) }) || len(text) > 2*maxText {
			t.Errorf("%q was written", text)
		}
	}
	if !strings.HasPrefix(e.Name, "a?[2Jb?") {
		t.Errorf("got %q", e.Name)
	}
}

func BenchmarkFlood(b *testing.B) {
	var p page
	l := New(&p, nil)
	defer l.Close()
	i := 0
	for b.Loop() {
		l.Log(flow(uint16(i), 0))
		i++
	}
	_ = fmt.Sprint(i)
}
