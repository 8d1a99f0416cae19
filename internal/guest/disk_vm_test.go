package guest_test

import (
	"bytes"
	"context"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/vmsan/vmsan/internal/guest"
	"github.com/vmsan/vmsan/internal/image"
	"github.com/vmsan/vmsan/internal/testenv"
)

// dial returns a client to a sandbox's guest.
func dial(t *testing.T, vmsan testenv.Vmsan, id string) *guest.Client {
	t.Helper()
	client := guest.New(guest.DialSocket(vmsan.Layout.GuestSocket(id)))
	t.Cleanup(client.Close)
	return client
}

func TestFreeze(t *testing.T) {
	vmsan := testenv.RequireVmsan(t)
	t.Run("agent as init", func(t *testing.T) { testFreeze(t, vmsan) })
	t.Run("image's init", func(t *testing.T) {
		agentIsSpared(t, vmsan, testFreeze(t, vmsan, "--init", "--image", testenv.SystemdImage, "--memory", "320m"))
	})
}

// agentIsSpared looks whether the agent beside an image's init is not killed for
// want of memory, but its commands may be.
func agentIsSpared(t *testing.T, vmsan testenv.Vmsan, id string) {
	t.Helper()
	got := vmsan.Exec(t, id, "sh", "-c", `cat /proc/self/oom_score_adj
		for p in /proc/[0-9]*; do
			case "$(tr '\0' ' ' <$p/cmdline)" in vmsan-agent*) cat $p/oom_score_adj;; esac
		done`)
	if got != "0\n-1000" {
		t.Errorf("a command and the agent have %q", got)
	}
}

func testFreeze(t *testing.T, vmsan testenv.Vmsan, flags ...string) (id string) {
	t.Helper()
	id = vmsan.Create(t, flags...)
	client := dial(t, vmsan, id)
	vmsan.Run(t, "exec", "-d", id, "sh", "-c",
		"n=0; while true; do n=$((n+1)); echo $n >/srv/count; echo $n >/run/count; sleep 0.01; done")
	for download(t, vmsan, id, "/run/count") == "" {
		time.Sleep(10 * time.Millisecond)
	}
	for range 2 {
		if err := client.Freeze(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	// What the command writes is not on the frozen disk, so only its standing
	// still keeps the number.
	before := download(t, vmsan, id, "/run/count")
	time.Sleep(300 * time.Millisecond)
	if after := download(t, vmsan, id, "/run/count"); after != before {
		t.Errorf("a command counted from %s to %s while it should hold still", before, after)
	}
	for range 2 {
		if err := client.Thaw(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	for download(t, vmsan, id, "/run/count") == before {
		time.Sleep(10 * time.Millisecond)
	}
	vmsan.Exec(t, id, "sh", "-c", "echo x >/srv/late; sync; test -s /srv/count")
	return id
}

// download reads a file by the agent itself, or "" if there is none.
func download(t *testing.T, vmsan testenv.Vmsan, id, path string) string {
	t.Helper()
	dial := guest.DialSocket(vmsan.Layout.GuestSocket(id))
	client := http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext:       func(ctx context.Context, _, _ string) (net.Conn, error) { return dial(ctx) },
	}}
	response, err := client.Get("http://guest/files?path=" + path)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	if response.StatusCode != http.StatusOK {
		return ""
	}
	return strings.TrimSpace(string(text))
}

func TestResize(t *testing.T) {
	const before, after = 512 << 20, 1536 << 20
	vmsan := testenv.RequireVmsan(t)
	id := vmsan.Create(t, "--disk", "512m", "--image", image.DefaultName)
	vmsan.Exec(t, id, "sh", "-c", "echo kept >/srv/file")
	if got := diskSize(t, vmsan, id); got > before {
		t.Fatalf("the disk begins with %d bytes", got)
	}
	vmsan.Run(t, "stop", id)
	if err := os.Truncate(vmsan.Layout.Overlay(id), after); err != nil {
		t.Fatal(err)
	}
	vmsan.Run(t, "start", id)
	for range 2 {
		got, err := dial(t, vmsan, id).Resize(t.Context(), after)
		if err != nil || got != after {
			t.Fatalf("got %d bytes, error %v; want %d", got, err, after)
		}
	}
	if got := diskSize(t, vmsan, id); got < after*8/10 || got > after {
		t.Errorf("programs see %d bytes of %d", got, after)
	}
	vmsan.Exec(t, id, "sh", "-c", "head -c 700M /dev/zero >/srv/large && sync")
	vmsan.Run(t, "restart", id)
	if got := vmsan.Exec(t, id, "sh", "-c", "cat /srv/file; stat -c %s /srv/large"); got != "kept\n734003200" {
		t.Errorf("after a restart: %q", got)
	}
}

// diskSize is the size of the root file system in bytes, as df has it.
func diskSize(t *testing.T, vmsan testenv.Vmsan, id string) int64 {
	t.Helper()
	fields := strings.Fields(vmsan.Exec(t, id, "df", "-B1", "--output=size", "/"))
	size, err := strconv.ParseInt(fields[len(fields)-1], 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return size
}

// A stop leaves nothing to be replayed, so that a copy of the disk is whole.
func TestStopClosesDisk(t *testing.T) {
	vmsan := testenv.RequireVmsan(t)
	id := vmsan.Create(t)
	vmsan.Exec(t, id, "sh", "-c", "echo x >/srv/file")
	vmsan.Run(t, "stop", id)
	super := make([]byte, 1024)
	overlay, err := os.Open(vmsan.Layout.Overlay(id))
	if err != nil {
		t.Fatal(err)
	}
	defer overlay.Close()
	if _, err := overlay.ReadAt(super, 1024); err != nil {
		t.Fatal(err)
	}
	// s_magic and s_feature_incompat of struct ext4_super_block.
	const needsRecovery = 0x4
	if !bytes.Equal(super[0x38:0x3a], []byte{0x53, 0xef}) || super[0x60]&needsRecovery != 0 {
		t.Errorf("the disk was not closed: magic %x, incompatible features %#x", super[0x38:0x3a], super[0x60])
	}
}
