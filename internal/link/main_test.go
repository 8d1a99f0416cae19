package link

import "testing"

func TestAgain(t *testing.T) {
	for _, c := range []struct {
		restart        string
		code, failures int
		want           bool
	}{
		{"", 1, 1, false},
		{"always", 0, 0, true},
		{"on-failure", 0, 0, false},
		{"on-failure", -1, 1000, true},
		{"on-failure:2", 1, 2, true},
		{"on-failure:2", 1, 3, false},
		{"on-failure:x", 1, 1, false},
	} {
		if got := (Main{Restart: c.restart}).Again(c.code, c.failures); got != c.want {
			t.Errorf("%q, code %d, %d failures: got %v", c.restart, c.code, c.failures, got)
		}
	}
}
