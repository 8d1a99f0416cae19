package cli

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/moby/term"

	"github.com/vmsan/vmsan/api"
)

func TestParseDetachKeys(t *testing.T) {
	for keys, want := range map[string][]byte{"": nil, defaultDetachKeys: {16, 17}, "ctrl-],q": {29, 'q'}} {
		if got, err := parseDetachKeys(keys); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%q: %v, %v; want %v", keys, got, err, want)
		}
	}
	for _, bad := range []string{"ctrl-", "ctrl-é", ",", "abc"} {
		if keys, err := parseDetachKeys(bad); !api.HasCode(err, api.ErrValidationChoice) {
			t.Errorf("%q: %v, %v", bad, keys, err)
		}
	}
}

func TestTerminalEnv(t *testing.T) {
	t.Setenv("TERM", "dumb")
	t.Setenv("COLORTERM", "truecolor")
	t.Setenv("NO_COLOR", "")
	got := terminalEnv(map[string]string{"A": "1", "LANG": "de_DE"}, map[string]string{"TERM": "vt100"})
	want := map[string]string{"A": "1", "LANG": "de_DE", "COLORTERM": "truecolor"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	t.Setenv("TERM", "screen")
	if got := terminalEnv(nil, nil); got["TERM"] != "screen" || got["LANG"] != "C.UTF-8" {
		t.Errorf("without any: %v", got)
	}
	// Who wants no colours wants none of a guest's.
	t.Setenv("NO_COLOR", "1")
	if got := terminalEnv(nil, nil); got["NO_COLOR"] != "1" || got["COLORTERM"] != "" {
		t.Errorf("without colours: %v", got)
	}
}

// pieces are read one at a time, as what is typed is.
type pieces []string

func (p *pieces) Read(b []byte) (int, error) {
	if len(*p) == 0 {
		return 0, io.EOF
	}
	n := copy(b, (*p)[0])
	*p = (*p)[1:]
	return n, nil
}

func TestPassInput(t *testing.T) {
	keys := []byte{16, 17}
	for _, test := range []struct {
		typed    pieces
		want     string
		detaches bool
	}{
		{pieces{"ls\n"}, "ls\n\x04", false},
		{pieces{"ls"}, "ls\x04\x04", false},
		{pieces{"ls\r", "\x10", "\x11", "rest"}, "ls\r", true},
		{pieces{"\x10", "x\r"}, "\x10x\r\x04\x04", false},
	} {
		var typed strings.Builder
		in := test.typed
		err := passInput(&typed, &in, keys)
		if detaches := errors.As(err, new(term.EscapeError)); detaches != test.detaches || typed.String() != test.want {
			t.Errorf("%q: typed %q, detaches %t (%v)", test.typed, typed.String(), detaches, err)
		}
	}
}

func TestWithoutAnswers(t *testing.T) {
	for until, want := range map[time.Duration]string{time.Hour: "ls", -time.Hour: "\x1b[?1;2cls"} {
		in := pieces{"\x1b[?1;2c", "ls"}
		got, err := io.ReadAll(withoutAnswers{&in, time.Now().Add(until)})
		if err != nil || string(got) != want {
			t.Errorf("until %v: %q, %v", until, got, err)
		}
	}
}
