package vmsan_test

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/vmsan/vmsan/internal/store"
	"github.com/vmsan/vmsan/internal/testenv"
)

// TestMain makes what the examples take for granted: a host that is set up, and
// vmsan in the search path. Where machines were not asked for they are skipped.
func TestMain(m *testing.M) {
	var made string
	if os.Getenv(preparedVar) == "" {
		flag.Set("test.skip", "^Example")
	} else {
		made = os.Getenv("VMSAN_DIR")
	}
	code := testenv.Main(m, prepareExamples)
	if made != "" {
		if err := removeExamples(made); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	os.Exit(code)
}

// preparedVar is set where the examples can run.
const preparedVar = "VMSAN_TEST_EXAMPLES"

func prepareExamples(from store.Layout) error {
	dir, err := testenv.LinkState(from.Dir)
	if err != nil {
		return err
	}
	binary, err := testenv.Binary()
	if err != nil {
		return err
	}
	os.Setenv("PATH", filepath.Dir(binary)+":"+os.Getenv("PATH"))
	os.Setenv("VMSAN_DIR", dir)
	os.Setenv(preparedVar, "yes")
	return nil
}

// removeExamples removes the examples' state directory, in which no sandbox may
// be left.
func removeExamples(dir string) error {
	layout, err := store.NewLayout(dir)
	if err != nil {
		return err
	}
	ids, err := layout.IDs()
	if err == nil && len(ids) > 0 {
		err = fmt.Errorf("the examples leave %v", ids)
	}
	os.RemoveAll(layout.Run)
	os.RemoveAll(dir)
	return err
}
