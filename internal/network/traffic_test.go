package network

import "testing"

func TestParseTraffic(t *testing.T) {
	const head = "Inter-|   Receive                                                |  Transmit\n" +
		" face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed\n" +
		"    lo: 9 9 9 9 9 9 9 9 9 9 9 9 9 9 9 9\n"
	got, err := parseTraffic(head + "  tap0: 1234 2 0 0 0 0 0 0 18446744073709551615 4 0 0 0 0 0 0\n")
	if want := (Traffic{Received: 18446744073709551615, Sent: 1234}); err != nil || got != want {
		t.Errorf("got %+v, %v", got, err)
	}
	for _, bad := range []string{"", head, head + "tap0: 1 2\n", head + "tap0: x 2 3 4 5 6 7 8 9\n"} {
		if got, err := parseTraffic(bad); err == nil {
			t.Errorf("%q: got %+v", bad, got)
		}
	}
}
