package monitor

import (
	"os/exec"
	"testing"
	"time"

	"github.com/vmsan/vmsan/internal/testenv"
	"github.com/vmsan/vmsan/internal/testenv/lab"
)

// TestFirewallFlushed: after a flush of all rules, with which many a file of a
// host's rules begins, sandboxes that run have their network again, and the host
// is kept from them.
func TestFirewallFlushed(t *testing.T) {
	vmsan := testenv.RequireVmsan(t)
	id := vmsan.Create(t, "--network-policy", "allow-all")
	internet, host := "http://198.51.100.20/", "http://"+lab.Uplink.String()+"/"
	reaches := func(when string) {
		t.Helper()
		vmsan.Exec(t, id, "curl", "-sS", "-m", "30", "-o", "/dev/null", internet)
		if out, _, err := vmsan.Try("exec", "--no-stdin", id, "curl", "-sS", "-m", "3", host); err == nil {
			t.Errorf("%s: the host's own address answers: %.80q", when, out)
		}
	}
	reaches("at first")
	for range 3 {
		if out, err := exec.Command("nft", "flush", "ruleset").CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		flushed := time.Now()
		for deadline := flushed.Add(time.Minute); exec.Command("nft", "list", "chain", "inet", "vmsan", "postrouting").Run() != nil; time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatal("the host's rules are not put back")
			}
		}
		t.Logf("the rules were put back within %s", time.Since(flushed).Round(time.Millisecond))
		reaches("after a flush")
	}
}
