package qemu

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// peer is QEMU's end of a monitor, which says what a test has it say.
type peer struct {
	t    *testing.T
	conn net.Conn
	read *bufio.Scanner
}

// scripted returns a monitor and runs script as its QEMU, which is gone when
// script returns.
func scripted(t *testing.T, events func(string, json.RawMessage), script func(p peer)) *monitor {
	t.Helper()
	ours, theirs := net.Pipe()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		defer theirs.Close()
		script(peer{t, theirs, bufio.NewScanner(theirs)})
	}()
	m := newMonitor(ours, events)
	t.Cleanup(func() {
		ours.Close()
		<-ended
		m.drain()
	})
	return m
}

func noEvents(string, json.RawMessage) {}

// command reads one command, and returns false at the end.
func (p peer) command() (name string, ok bool) {
	if !p.read.Scan() {
		return "", false
	}
	var c struct{ Execute string }
	if err := json.Unmarshal(p.read.Bytes(), &c); err != nil {
		p.t.Errorf("not a command: %q", p.read.Bytes())
	}
	return c.Execute, true
}

func (p peer) say(lines ...string) {
	for _, line := range lines {
		if _, err := io.WriteString(p.conn, line+"\n"); err != nil {
			return
		}
	}
}

const greeting = `{"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}}, "capabilities": ["oob"]}}`

func TestMonitorRunsCommands(t *testing.T) {
	m := scripted(t, noEvents, func(p peer) {
		p.say(greeting)
		for {
			name, ok := p.command()
			if !ok {
				return
			}
			p.say(`{"return": {"name": "` + name + `"}}`)
		}
	})
	if err := m.negotiate(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"stop", "cont"} {
		var got struct{ Name string }
		if err := m.run(t.Context(), want, nil, &got); err != nil || got.Name != want {
			t.Errorf("got %q, %v; want %q", got.Name, err, want)
		}
	}
}

func TestMonitorSerializesCommands(t *testing.T) {
	m := scripted(t, noEvents, func(p peer) {
		for {
			name, ok := p.command()
			if !ok {
				return
			}
			time.Sleep(time.Millisecond)
			p.say(`{"return": "` + name + `"}`)
		}
	})
	errs := make(chan error)
	for _, name := range []string{"a", "b", "c", "d"} {
		go func() {
			var got string
			err := m.run(context.Background(), name, nil, &got)
			if err == nil && got != name {
				err = errors.New("got the answer to " + got + " for " + name)
			}
			errs <- err
		}()
	}
	for range 4 {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
}

func TestMonitorReportsErrors(t *testing.T) {
	m := scripted(t, noEvents, func(p peer) {
		p.command()
		p.say(`{"error": {"class": "CommandNotFound", "desc": "The command fly has not been found"}}`)
		p.command()
	})
	err := m.run(t.Context(), "fly", nil, nil)
	if want := "QEMU fly: The command fly has not been found"; err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
}

// Events come before, between and behind answers.
func TestMonitorEvents(t *testing.T) {
	var names []string
	m := scripted(t, func(name string, _ json.RawMessage) { names = append(names, name) }, func(p peer) {
		p.say(greeting, `{"event": "ONE", "timestamp": {"seconds": 1}}`)
		p.command()
		p.say(`{"event": "TWO", "data": {"guest": true}}`, `{"return": {}}`, `{"event": "THREE"}`)
	})
	if err := m.run(t.Context(), "stop", nil, nil); err != nil {
		t.Fatal(err)
	}
	m.drain()
	if want := []string{"ONE", "TWO", "THREE"}; !slices.Equal(names, want) {
		t.Errorf("got events %v, want %v", names, want)
	}
}

// What is not QEMU's protocol ends the monitor, and so every command.
func TestMonitorGivesUp(t *testing.T) {
	for name, says := range map[string]string{
		"nothing":           "",
		"garbage":           "\x00\xff\x1b[2J\n",
		"half a message":    `{"return": `,
		"other types":       `{"return": 1, "event": 5}` + "\n",
		"two answers":       `{"return": {}}` + "\n" + `{"return": {}}` + "\n" + `{"return": {}}` + "\n",
		"a line for ever":   `{"return": "` + strings.Repeat("x", maxQMPLine),
		"deep":              strings.Repeat("[", 20_000) + "\n",
		"an error's string": `{"error": "no"}` + "\n",
	} {
		t.Run(name, func(t *testing.T) {
			m := scripted(t, noEvents, func(p peer) {
				p.command()
				io.WriteString(p.conn, says)
			})
			m.run(t.Context(), "first", nil, nil)
			if err := m.run(t.Context(), "second", nil, nil); !errors.Is(err, errMonitorClosed) {
				t.Errorf("got %v, want %v", err, errMonitorClosed)
			}
		})
	}
}

func TestMonitorResultOfAnotherType(t *testing.T) {
	m := scripted(t, noEvents, func(p peer) {
		p.command()
		p.say(`{"return": "text"}`)
		p.command()
	})
	var number int
	if err := m.run(t.Context(), "count", nil, &number); err == nil || !strings.HasPrefix(err.Error(), "QEMU count: ") {
		t.Errorf("got %v, want an error that names the command", err)
	}
}

// A command that is not answered ends with its context, and takes the monitor
// with it; one that waits for its turn ends with its own.
func TestMonitorTimeouts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := scripted(t, noEvents, func(p peer) {
			p.command()
			p.command()
		})
		hung := make(chan error, 1)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		go func() { hung <- m.run(ctx, "hang", nil, nil) }()
		synctest.Wait()
		short, cancelShort := context.WithTimeout(t.Context(), time.Second)
		defer cancelShort()
		if err := m.run(short, "wait", nil, nil); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("waiting for a turn: got %v, want deadline exceeded", err)
		}
		if err := <-hung; !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v, want deadline exceeded", err)
		}
		if err := m.run(t.Context(), "late", nil, nil); !errors.Is(err, errMonitorClosed) {
			t.Errorf("after a timeout: got %v, want %v", err, errMonitorClosed)
		}
	})
}

// FuzzMonitor has a VMM that was taken over say anything: a command ends, and
// what it returns is of the type that was asked for or an error.
func FuzzMonitor(f *testing.F) {
	f.Add([]byte(greeting + "\n" + `{"return": {"a": 1}}` + "\n"))
	f.Add([]byte(`{"event": "SHUTDOWN", "data": {"guest": true, "reason": "guest-reset"}}` + "\n"))
	f.Add([]byte(`{"error": {"class": "GenericError", "desc": "no"}}` + "\n{"))
	f.Fuzz(func(t *testing.T, says []byte) {
		vm := &virtualMachine{}
		m := scripted(t, vm.event, func(p peer) {
			go io.Copy(io.Discard, p.conn)
			p.conn.Write(says)
		})
		var result map[string]any
		m.run(t.Context(), "query", nil, &result)
		m.drain()
	})
}

func FuzzParseAnswer(f *testing.F) {
	f.Add([]byte(greeting))
	f.Add([]byte(`{"return": null}`))
	f.Fuzz(func(t *testing.T, line []byte) {
		a, ok := parseAnswer(line)
		if ok && !json.Valid(line) {
			t.Errorf("took %q", line)
		}
		if a.Error != nil && bytes.ContainsRune([]byte(a.Error.Error()), 0x1b) {
			t.Errorf("an error that moves the cursor: %q", a.Error)
		}
	})
}
