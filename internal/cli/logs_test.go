package cli

import (
	"strings"
	"testing"
)

func TestLogsKeepTheTerminal(t *testing.T) {
	var out strings.Builder
	if _, err := (plain{&out}).Write([]byte("one\ttwo\r\n\x1b[2Jthr\u00e9e\u009b2J\x7f")); err != nil {
		t.Fatal(err)
	}
	if got, want := out.String(), "one\ttwo\r\n?[2Jthr\u00e9e?\x9b2J?"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}
