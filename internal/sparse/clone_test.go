package sparse

import (
	"bytes"
	"context"
	"errors"
	"os"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestCopyKeepsHoles(t *testing.T) {
	from, to := temp(t, 1<<20), temp(t, 0)
	write(t, from, bytes.Repeat([]byte{1}, 8192), 0)
	write(t, from, bytes.Repeat([]byte{2}, 5000), 500_000)
	write(t, from, []byte{3}, 1<<20-1)
	if err := Copy(t.Context(), to, from); err != nil {
		t.Fatal(err)
	}
	want, err := os.ReadFile(from.Name())
	if err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(to.Name()); err != nil || !bytes.Equal(got, want) {
		t.Errorf("the copy differs, error %v", err)
	}
	if diff := cmp.Diff(extents(t, to), extents(t, from)); diff != "" {
		t.Errorf("the copy has the first, the original the second:\n%s", diff)
	}
}

func TestCopyIsBrokenOff(t *testing.T) {
	from, to := temp(t, 1<<20), temp(t, 0)
	write(t, from, []byte{1}, 0)
	reason := errors.New("somebody stops it")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(reason)
	if err := Copy(ctx, to, from); !errors.Is(err, reason) {
		t.Errorf("got error %v, want %v", err, reason)
	}
}
