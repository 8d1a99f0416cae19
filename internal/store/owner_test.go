package store_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vmsan/vmsan/api"
	"github.com/vmsan/vmsan/internal/store"
	"github.com/vmsan/vmsan/internal/testenv"
)

// TestStateOfSomebodyElse is of root, who could use anybody's, with sockets
// elsewhere than theirs.
func TestStateOfSomebodyElse(t *testing.T) {
	testenv.RequireRoot(t)
	l := store.Layout{Dir: t.TempDir(), Run: filepath.Join(t.TempDir(), "run")}
	if err := l.Init(); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(l.Sandboxes(), 1000, 1000); err != nil {
		t.Fatal(err)
	}
	if err := l.Init(); !api.HasCode(err, api.ErrValidationStateDir) || !strings.Contains(err.Error(), "1000") {
		t.Errorf("got %v", err)
	}
}
