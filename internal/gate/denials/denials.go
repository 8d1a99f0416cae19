// Package denials keeps a sandbox's network log: what the firewall, the
// resolver and the proxy have denied or allowed.
//
// System calls beyond read, write and epoll: pwrite64, pread64 and ftruncate
// for the log's file. The netlink socket is only read, by read.
package denials

import (
	"encoding/json"
	"io"
	"strings"
	"sync"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/vmsan/vmsan/api"
)

// An event that is repeated within mergeTime is not written again, but
// counted. Of each verdict, maxDistinct events are told apart in that time,
// and what there is beyond is counted too.
const (
	mergeTime   = time.Second
	maxDistinct = 100
)

// maxText is the longest text in an event, in bytes: a hint with a name of
// DNS in it.
const maxText = 300

// Log writes events as lines of JSON. Repeats of an event are merged, and
// there is a limit to how many lines a second it writes, so that a flood
// costs little.
type Log struct {
	out     io.Writer
	denied  func(api.NetworkEvent)
	wake    chan struct{}
	closing chan struct{}
	closed  chan struct{}

	mu    sync.Mutex
	fresh []api.NetworkEvent
	known map[api.NetworkEvent]*repeats // by the event without time and count
	count map[api.Verdict]int           // how many of known have it
}

// repeats are how often an event was seen since it was last written.
type repeats struct {
	n    int
	last time.Time
}

// New makes a Log of w, to which it writes whole lines. denied is called for
// each of them that is of something that was denied, in their order. Optional.
func New(w io.Writer, denied func(api.NetworkEvent)) *Log {
	if denied == nil {
		denied = func(api.NetworkEvent) {}
	}
	l := &Log{
		out:     w,
		denied:  denied,
		wake:    make(chan struct{}, 1),
		closing: make(chan struct{}),
		closed:  make(chan struct{}),
		known:   map[api.NetworkEvent]*repeats{},
		count:   map[api.Verdict]int{},
	}
	go l.run()
	return l
}

// Log takes an event whose Time and Count may be left zero. It does not wait
// for the file.
func (l *Log) Log(e api.NetworkEvent) {
	if e.Time.IsZero() {
		e.Time = time.Now()
	}
	e.Count = max(e.Count, 1)
	e.Protocol, e.Name, e.Rule, e.Hint = printable(e.Protocol), printable(e.Name), printable(e.Rule), printable(e.Hint)
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.merge(e) {
		return
	}
	if l.count[e.Verdict] < maxDistinct {
		l.know(e, 0)
		l.fresh = append(l.fresh, e)
	} else if rest := crowd(e); !l.merge(rest) {
		l.know(rest, rest.Count)
	}
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// crowd stands for all that is not told apart.
func crowd(e api.NetworkEvent) api.NetworkEvent {
	return api.NetworkEvent{Verdict: e.Verdict, Kind: e.Kind, Rule: "too many to tell apart", Time: e.Time, Count: e.Count}
}

func bare(e api.NetworkEvent) api.NetworkEvent {
	e.Time, e.Count = time.Time{}, 0
	return e
}

func (l *Log) know(e api.NetworkEvent, n int) {
	l.known[bare(e)] = &repeats{n, e.Time}
	l.count[e.Verdict]++
}

func (l *Log) merge(e api.NetworkEvent) bool {
	r := l.known[bare(e)]
	if r != nil {
		r.n += e.Count
		r.last = e.Time
	}
	return r != nil
}

// run writes until the Log is closed. It has something to wait for only as
// long as there are events.
func (l *Log) run() {
	defer close(l.closed)
	var due <-chan time.Time
	for {
		select {
		case <-l.wake:
			if due == nil {
				due = time.After(mergeTime)
			}
			l.write(l.take())
		case <-due:
			due = nil
			events, more := l.sweep()
			l.write(events)
			if more {
				due = time.After(mergeTime)
			}
		case <-l.closing:
			l.write(l.take())
			events, _ := l.sweep()
			l.write(events)
			return
		}
	}
}

func (l *Log) take() []api.NetworkEvent {
	l.mu.Lock()
	defer l.mu.Unlock()
	fresh := l.fresh
	l.fresh = nil
	return fresh
}

// sweep returns the repeats, and forgets the events that had none.
func (l *Log) sweep() (events []api.NetworkEvent, more bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	events, l.fresh = l.fresh, nil
	for e, r := range l.known {
		if r.n == 0 {
			delete(l.known, e)
			l.count[e.Verdict]--
			continue
		}
		e.Time, e.Count = r.last, r.n
		events = append(events, e)
		r.n = 0
	}
	return events, len(l.known) > 0
}

// write has nobody to tell that the disk is full.
func (l *Log) write(events []api.NetworkEvent) {
	var lines []byte
	for _, e := range events {
		line, err := json.Marshal(e)
		if err != nil {
			continue
		}
		lines = append(append(lines, line...), '\n')
	}
	if len(lines) > 0 {
		l.out.Write(lines)
	}
	for _, e := range events {
		if e.Verdict == api.VerdictDenied {
			l.denied(e)
		}
	}
}

// Close writes what is still to be written. It may be called once; events
// that come later are lost.
func (l *Log) Close() error {
	close(l.closing)
	<-l.closed
	return nil
}

// printable bounds a text that a guest may have written, and takes out what
// a terminal would obey.
func printable(text string) string {
	if len(text) > maxText {
		text = text[:maxText]
	}
	if !strings.ContainsFunc(text, unprintable) {
		return text
	}
	return strings.Map(func(c rune) rune {
		if unprintable(c) {
			return '?'
		}
		return c
	}, text)
}

func unprintable(c rune) bool { return c == utf8.RuneError || !unicode.IsPrint(c) }
