package guest_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/vmsan/vmsan/internal/guest"
	"github.com/vmsan/vmsan/internal/testenv"
)

// Streams of commands, in a real guest: its kernel moves the output, and its
// port is what the frames go through.
func TestStreams(t *testing.T) {
	vmsan := testenv.RequireVmsan(t)
	id := vmsan.Create(t)
	t.Run("binary", func(t *testing.T) { testBinary(t, dial(t, vmsan, id)) })
	t.Run("one line", func(t *testing.T) { testOneLine(t, dial(t, vmsan, id)) })
	t.Run("both ways", func(t *testing.T) { testBothWays(t, dial(t, vmsan, id)) })
	t.Run("uneven writes", func(t *testing.T) { testUnevenWrites(t, dial(t, vmsan, id)) })
	t.Run("client gone", func(t *testing.T) { testClientGone(t, dial(t, vmsan, id)) })
}

func testBinary(t *testing.T, client *guest.Client) {
	var stdout, stderr bytes.Buffer
	exit, err := client.Run(t.Context(), guest.Command{
		Args:   []string{"sh", "-c", `printf 'a\0\377\r\nb'; printf '\0e\033' >&2; exit 7`},
		Stdout: &stdout, Stderr: &stderr,
	})
	if err != nil || exit.Code != 7 || stdout.String() != "a\x00\xff\r\nb" || stderr.String() != "\x00e\x1b" {
		t.Errorf("%+v, %v, %q, %q", exit, err, stdout.String(), stderr.String())
	}
}

// counted is a hash and a length.
type counted struct {
	hash.Hash
	n int
}

func newCounted() *counted { return &counted{Hash: sha256.New()} }

func (c *counted) Write(b []byte) (int, error) {
	c.n += len(b)
	return c.Hash.Write(b)
}

func (c *counted) String() string { return fmt.Sprintf("%d bytes, %x", c.n, c.Sum(nil)) }

func testOneLine(t *testing.T, client *guest.Client) {
	const size = 100_000_000
	got, want := newCounted(), newCounted()
	io.CopyN(want, zeros{}, size)
	exit, err := client.Run(t.Context(), guest.Command{
		Args: []string{"head", "-c", fmt.Sprint(size), "/dev/zero"}, Stdout: got,
	})
	if err != nil || exit.Code != 0 || got.String() != want.String() {
		t.Errorf("%+v, %v, got %s, want %s", exit, err, got, want)
	}
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) {
	clear(b)
	return len(b), nil
}

func testBothWays(t *testing.T, client *guest.Client) {
	const size = 100_000_000
	sent, got, errs := newCounted(), newCounted(), newCounted()
	input := io.TeeReader(io.LimitReader(rand.NewChaCha8([32]byte{1}), size), sent)
	exit, err := client.Run(t.Context(), guest.Command{
		Args: []string{"tee", "/dev/stderr"}, Stdin: input, Stdout: got, Stderr: errs,
	})
	if err != nil || exit.Code != 0 || got.String() != sent.String() || errs.String() != sent.String() {
		t.Errorf("%+v, %v, sent %s, got %s and %s", exit, err, sent, got, errs)
	}
}

// Writes that do not fill pages leave pipes whose pages are parts.
func testUnevenWrites(t *testing.T, client *guest.Client) {
	for _, size := range []string{"1000", "4097", "65537", "1M"} {
		got := newCounted()
		exit, err := client.Run(t.Context(), guest.Command{
			Args: []string{"sh", "-c", `seq 1 3000000 >/tmp/numbers; exec dd status=none if=/tmp/numbers bs=` + size}, Stdout: got,
		})
		want := newCounted()
		for i := range 3_000_000 {
			fmt.Fprintln(want, i+1)
		}
		if err != nil || exit.Code != 0 || got.String() != want.String() {
			t.Errorf("writes of %s: %+v, %v, got %s, want %s", size, exit, err, got, want)
		}
	}
}

// never is a writer that takes nothing until it is done.
type never struct{ ctx context.Context }

func (n never) Write([]byte) (int, error) {
	<-n.ctx.Done()
	return 0, n.ctx.Err()
}

// A client that goes away takes the whole tree with it: while it is idle, and
// while its output has nowhere to go.
func testClientGone(t *testing.T, client *guest.Client) {
	for _, script := range []string{"sleep 1234 & wait", "sleep 1234 & cat /dev/zero"} {
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		_, err := client.Run(ctx, guest.Command{Args: []string{"sh", "-c", script}, Stdout: never{ctx}})
		cancel()
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%s: %v", script, err)
		}
		var left strings.Builder
		exit, err := client.Run(t.Context(), guest.Command{
			Args:   []string{"sh", "-c", "for i in $(seq 100); do pgrep -f 'sleep 123[4]|/dev/zer[o]' >/dev/null || exit 0; sleep 0.1; done; ps ax; exit 1"},
			Stdout: &left,
		})
		if err != nil || exit.Code != 0 {
			t.Errorf("%s: left: %v, %s", script, err, left.String())
		}
	}
}
