package events

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/vmsan/vmsan/api"
	"github.com/vmsan/vmsan/internal/testenv"
)

// writerDir makes the test binary a writer; see TestKilledWriters.
const writerDir = "VMSAN_TEST_EVENTS_WRITER"

func TestMain(m *testing.M) {
	if dir := os.Getenv(writerDir); dir != "" {
		for i := 0; ; i++ {
			if err := (Journal{dir}).Append(numbered(strconv.Itoa(os.Getpid()), i)); err != nil {
				fmt.Fprintln(os.Stderr, err)
				os.Exit(1)
			}
			// A lock is not fair to those who wait beside one that never pauses.
			time.Sleep(50 * time.Microsecond)
		}
	}
	os.Exit(testenv.Main(m))
}

func newJournal(t *testing.T) Journal { return Journal{filepath.Join(t.TempDir(), "events")} }

func numbered(writer string, i int) api.Event {
	return api.Event{Type: api.EventVMStop, VM: writer, Reason: strconv.Itoa(i), Name: strings.Repeat("n", 400)}
}

func (j Journal) mustAppend(t *testing.T, events ...api.Event) {
	t.Helper()
	for _, e := range events {
		if err := j.Append(e); err != nil {
			t.Fatal(err)
		}
	}
}

func (j Journal) mustRead(t *testing.T) []api.Event {
	t.Helper()
	events, err := j.Read(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return events
}

// reasons are the reasons of events, by which tests know them.
func reasons(events []api.Event) (list []string) {
	for _, e := range events {
		list = append(list, e.Reason)
	}
	return list
}

func TestWhatIsWrittenIsRead(t *testing.T) {
	j := newJournal(t)
	if got := j.mustRead(t); len(got) > 0 {
		t.Errorf("a journal that is not there has %v", got)
	}
	at := time.Date(2030, 1, 2, 3, 4, 5, 6000, time.UTC)
	want := []api.Event{
		{Time: at, Type: api.EventVMCreate, VM: "vm0123456789", Name: "web", Image: "debian"},
		{Time: at.Add(time.Second), Type: api.EventNetworkDenied, VM: "vm0123456789", Unwritten: 4, Network: &api.NetworkEvent{
			Time: at, Verdict: api.VerdictDenied, Kind: api.EventDNS, Name: "example.com", Count: 2, Destination: netip.MustParseAddr("192.0.2.1"),
		}},
		{Time: at.Add(2 * time.Second), Type: api.EventVMFork, Copies: []string{"vm1", "vm2"}},
	}
	j.mustAppend(t, want[0], want[2], want[1]) // the books are put together by time
	if diff := cmp.Diff(want, j.mustRead(t), cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
		t.Error(diff)
	}
}

// What a guest has said cannot move a cursor, begin a line or fill the journal.
func TestTextsAreTamed(t *testing.T) {
	j := newJournal(t)
	network := &api.NetworkEvent{Name: "evil\x1b[2J\n" + strings.Repeat("é", 4096)}
	j.mustAppend(t, api.Event{Type: api.EventNetworkDenied, Network: network}, numbered("next", 1))
	events := j.mustRead(t)
	if len(events) != 2 {
		t.Fatalf("got %d events", len(events))
	}
	name := events[0].Network.Name
	if !strings.HasPrefix(name, "evil?[2J?é") || len(name) > maxText || strings.HasSuffix(name, "?") {
		t.Errorf("got %q", name)
	}
	if !strings.Contains(network.Name, "\x1b") {
		t.Error("the caller's event was changed")
	}
}

func TestRefusesWhatIsNone(t *testing.T) {
	j := newJournal(t)
	for _, typ := range []api.EventType{"", "vm", "vm.", "VM.STOP", "vm.stop\n", "a.b.c"} {
		if err := j.Append(api.Event{Type: typ}); err == nil {
			t.Errorf("%q was written", typ)
		}
	}
	if err := j.Append(api.Event{Type: api.EventVMFork, Copies: []string{strings.Repeat("x", maxLine)}}); err == nil {
		t.Error("an event that is too long was written")
	}
	if len(j.mustRead(t)) > 0 {
		t.Error("something was written")
	}
	for _, typ := range api.EventTypes {
		if !validType.MatchString(string(typ)) {
			t.Errorf("%s could not be written", typ)
		}
	}
}

// A state directory that was removed does not come back with an event.
func TestLeavesNoDirectory(t *testing.T) {
	parent := filepath.Join(t.TempDir(), "gone")
	if err := (Journal{filepath.Join(parent, "events")}).Append(numbered("late", 1)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("got %v", err)
	}
	if _, err := os.Stat(parent); !errors.Is(err, os.ErrNotExist) {
		t.Error("it is there again")
	}
}

// A writer that is killed in the middle of a line costs that line alone, and
// none if only the end of the line was missing.
func TestTornLines(t *testing.T) {
	line, err := encode(numbered("torn", 2))
	if err != nil {
		t.Fatal(err)
	}
	for cut := range len(line) {
		j := newJournal(t)
		j.mustAppend(t, numbered("whole", 1))
		file, err := os.OpenFile(j.current("lifecycle"), os.O_WRONLY|os.O_APPEND, 0)
		if err != nil {
			t.Fatal(err)
		}
		file.Write(line[:cut])
		file.Close()
		if got := reasons(j.mustRead(t)); !cmp.Equal(got, []string{"1"}) {
			t.Fatalf("cut at %d, read %v", cut, got)
		}
		j.mustAppend(t, numbered("whole", 3))
		want := []string{"1", "3"}
		if cut == len(line)-1 {
			want = []string{"1", "2", "3"}
		}
		got := reasons(j.mustRead(t))
		slices.Sort(got) // their times are not those of the test's order
		if !cmp.Equal(got, want) {
			t.Fatalf("cut at %d, read %v then", cut, got)
		}
	}
}

func sizeOf(t *testing.T, j Journal) (total int64) {
	t.Helper()
	entries, err := os.ReadDir(j.Dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		info, err := e.Info()
		if err != nil {
			t.Fatal(err)
		}
		total += info.Size()
	}
	return total
}

// The journal holds the last of a hundred thousand events and forgets the
// first, and what one book forgets another keeps.
func TestBound(t *testing.T) {
	j := newJournal(t)
	j.mustAppend(t, api.Event{Type: api.EventVMCreate, VM: "kept"})
	const count = 100_000
	for i := range count {
		if err := j.Append(api.Event{Type: api.EventNetworkDenied, VM: "flood", Reason: strconv.Itoa(i)}); err != nil {
			t.Fatal(err)
		}
	}
	if size := sizeOf(t, j); size > 2*maxSegment+maxLine {
		t.Errorf("it has %d bytes", size)
	}
	events := j.mustRead(t)
	if events[0].VM != "kept" {
		t.Error("a flood of denials has pushed something else out")
	}
	events = events[1:]
	if len(events) < maxSegment/200 {
		t.Errorf("only %d events are left", len(events))
	}
	for i, e := range events {
		if want := strconv.Itoa(count - len(events) + i); e.Reason != want {
			t.Fatalf("event %d of %d is %s, not %s", i, len(events), e.Reason, want)
		}
	}
}

// Many writers lose nothing, and none sees another's line within its own.
func TestConcurrentWriters(t *testing.T) {
	j := newJournal(t)
	const writers, each = 8, 200 // less than a segment
	var all sync.WaitGroup
	for w := range writers {
		all.Go(func() {
			for i := range each {
				if err := j.Append(numbered(strconv.Itoa(w), i)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	all.Wait()
	next := map[string]int{}
	text, err := os.ReadFile(j.current("lifecycle"))
	if err != nil {
		t.Fatal(err)
	}
	for line := range bytes.Lines(text) {
		e, ok := decode(bytes.TrimSuffix(line, []byte("\n")))
		if !ok || e.Reason != strconv.Itoa(next[e.VM]) {
			t.Fatalf("got %q", line)
		}
		next[e.VM]++
	}
	for w := range writers {
		if n := next[strconv.Itoa(w)]; n != each {
			t.Errorf("writer %d has %d events", w, n)
		}
	}
}

// Writers in processes of their own are killed at any moment. What each had
// written stays in order without a gap, and others go on.
func TestKilledWriters(t *testing.T) {
	j := newJournal(t)
	if err := j.makeDir(); err != nil {
		t.Fatal(err)
	}
	for round := range 8 {
		ctx, kill := context.WithCancel(t.Context())
		var said [2]bytes.Buffer
		var both [2]*exec.Cmd
		for i := range both {
			both[i] = exec.CommandContext(ctx, os.Args[0])
			both[i].Env = append(os.Environ(), writerDir+"="+j.Dir)
			both[i].Stderr = &said[i]
			if err := both[i].Start(); err != nil {
				t.Fatal(err)
			}
		}
		pids := map[string]bool{}
		for _, cmd := range both {
			pids[strconv.Itoa(cmd.Process.Pid)] = true
		}
		awaitWriters(t, j, pids)
		time.Sleep(time.Duration(round) * time.Millisecond)
		kill()
		for i, cmd := range both {
			cmd.Wait()
			if said[i].Len() > 0 {
				t.Fatal(said[i].String())
			}
		}
		last := map[string]int{}
		for _, e := range j.mustRead(t) {
			n, err := strconv.Atoi(e.Reason)
			if before, seen := last[e.VM]; err != nil || seen && n != before+1 {
				t.Fatalf("event %s of %s comes after %d", e.Reason, e.VM, before)
			}
			last[e.VM] = n
		}
	}
	j.mustAppend(t, numbered("after", 1))
	if events := j.mustRead(t); events[len(events)-1].VM != "after" {
		t.Error("nobody can write any more")
	}
}

// awaitWriters waits until each writer has written.
func awaitWriters(t *testing.T, j Journal, pids map[string]bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); len(pids) > 0; time.Sleep(time.Millisecond) {
		for _, e := range j.mustRead(t) {
			delete(pids, e.VM)
		}
		if time.Now().After(deadline) {
			t.Fatal("a writer has written nothing")
		}
	}
}

// Who follows sees all there is and all that comes, in order and once, however
// often the files change places.
func TestFollow(t *testing.T) {
	j := newJournal(t)
	const before, after = 3, 6_000 // more than a segment holds
	for i := range before {
		j.mustAppend(t, numbered("w", i))
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	seen, following := 0, make(chan struct{})
	var all sync.WaitGroup
	all.Go(func() {
		<-following
		for i := range after {
			if err := j.Append(numbered("w", before+i)); err != nil {
				t.Error(err)
				cancel()
			}
		}
	})
	err := j.Follow(ctx, func(e api.Event) error {
		if e.Reason != strconv.Itoa(seen) {
			return fmt.Errorf("event %s comes after %d", e.Reason, seen-1)
		}
		if seen++; seen == before {
			close(following)
		}
		if seen == before+after {
			cancel()
		}
		return nil
	})
	all.Wait()
	if err != nil || seen != before+after {
		t.Errorf("saw %d events, %v", seen, err)
	}
	if _, err := os.Stat(j.previous("lifecycle")); err != nil {
		t.Errorf("the files never changed places: %v", err)
	}
}

// One who was so slow that both files were replaced reads the one that is open
// to its end, and goes on with those there are.
func TestLateReader(t *testing.T) {
	j := newJournal(t)
	r := j.reader()
	defer r.close()
	j.mustAppend(t, numbered("w", 0))
	if events, err := r.next(t.Context()); err != nil || len(events) != 1 {
		t.Fatalf("got %v, %v", events, err)
	}
	const count = 8_000
	for i := range count {
		j.mustAppend(t, numbered("w", i+1))
	}
	events, err := r.next(t.Context())
	if err != nil || len(events) == 0 {
		t.Fatalf("got %d events, %v", len(events), err)
	}
	got, left := reasons(events), reasons(j.mustRead(t))
	if len(got) < len(left) || !cmp.Equal(got[len(got)-len(left):], left) || got[0] != "1" {
		t.Errorf("got %d events from %s to %s, and the journal has %d from %s", len(got), got[0], got[len(got)-1], len(left), left[0])
	}
}

func TestFollowFailsAsItsCallerDoes(t *testing.T) {
	j := newJournal(t)
	j.mustAppend(t, numbered("w", 0))
	full := errors.New("nobody reads this")
	if err := j.Follow(t.Context(), func(api.Event) error { return full }); !errors.Is(err, full) {
		t.Errorf("got %v", err)
	}
}

// FuzzDecode has any line in the journal: what is read from it can be written,
// and is then the same.
func FuzzDecode(f *testing.F) {
	for _, line := range []string{
		"", "{", "null", `{"time":"2030-01-02T03:04:05Z","type":"vm.stop","vm":"vm0123456789","reason":"stopped"}`,
		`{"time":"2030-01-02T03:04:05.123456789+01:00","type":"network.denied","network":{"time":"2030-01-02T03:04:05Z","verdict":"denied","kind":"flow","destination":"fe80::1%eth0","port":65535,"count":-1}}`,
		`{"time":"0001-01-01T00:00:00Z","type":"vm.stop"}`, `{"time":"2030-01-02T03:04:05Z","type":"vm.fork","copies":["a",""],"diskBytes":1e3}`,
		`{"time":"2030-01-02T03:04:05Z","type":"x.y","more":{"deep":[[[]]]},"timeoutAt":"2030-01-02T03:04:05Z"}`,
	} {
		f.Add([]byte(line))
	}
	f.Fuzz(func(t *testing.T, line []byte) {
		e, ok := decode(line)
		if !ok {
			return
		}
		first, err := encode(e)
		if err != nil {
			return // what its texts are escaped to is too long
		}
		again, ok := decode(bytes.TrimSuffix(first, []byte("\n")))
		if !ok {
			t.Fatalf("%q became %q, which is none", line, first)
		}
		second, err := encode(again)
		if err != nil || !bytes.Equal(first, second) {
			t.Fatalf("%q became %q and then %q, %v", line, first, second, err)
		}
		if bytes.Count(first, []byte("\n")) != 1 {
			t.Fatalf("%q became several lines: %q", line, first)
		}
	})
}
