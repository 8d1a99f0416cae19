package guest_test

import (
	"testing"

	"github.com/vmsan/vmsan/internal/testenv"
)

// The guest API is there for the guest's own programs too, on loopback, and
// without what only the host may ask for.
func TestGuestsOwnDoor(t *testing.T) {
	vmsan := testenv.RequireVmsan(t)
	id := vmsan.Create(t)
	const url = "http://127.0.0.1:49983"
	for path, want := range map[string]string{
		"/health":                             "204",
		"/envs":                               "200",
		"/files?path=/etc/hostname":           "200",
		"/init":                               "404",
		"/vmsan.guest.v1.Host/Info":           "404",
		"/vmsan/dial?network=tcp&address=x:1": "404",
	} {
		got := vmsan.Exec(t, id, "curl", "--silent", "--output", "/dev/null", "--write-out", "%{http_code}", url+path)
		if got != want {
			t.Errorf("%s: got %s, want %s", path, got, want)
		}
	}
	// Many at once, while nobody serves yet or any more.
	vmsan.Exec(t, id, "sh", "-ec", "for i in $(seq 10); do curl --silent --fail "+url+"/health & done; wait")
}
