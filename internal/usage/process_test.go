package usage

import (
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// TestOfProcess measures this process before and after it has worked.
func TestOfProcess(t *testing.T) {
	before, err := OfProcess(os.Getpid())
	if err != nil || before.Private || before.RSS < mib || before.PSS < mib/2 || before.PSS > before.RSS {
		t.Fatalf("%+v, %v", before, err)
	}
	const work = 100 * time.Millisecond
	var after Process
	for after.CPU < before.CPU+work {
		if after, err = OfProcess(os.Getpid()); err != nil {
			t.Fatal(err)
		}
	}
	write(t, filepath.Join(t.TempDir(), "data"), 4*mib)
	if after, err = OfProcess(os.Getpid()); err != nil || after.Written < before.Written {
		t.Errorf("after writing: %+v, %v", after, err)
	}
	sum := before
	sum.Add(after)
	if sum.CPU != before.CPU+after.CPU || sum.RSS != before.RSS+after.RSS || sum.PSS != before.PSS+after.PSS {
		t.Errorf("the sum is %+v", sum)
	}
	ended := exec.Command("true")
	if err := ended.Run(); err != nil {
		t.Fatal(err)
	}
	if p, err := OfProcess(ended.Process.Pid); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("of a process that has ended: %+v, %v", p, err)
	}
}

func TestParseStat(t *testing.T) {
	const begin, rest = "12 (a ) b) S 1 2 3 4 5 6 7 8 9 10 ", " 0 0 20 0 1 0 100 5000 7 18446744073709551615 0"
	var p Process
	if err := p.parseStat(begin + "150 50" + rest); err != nil || p.CPU != 2*time.Second || p.RSS != 7*int64(os.Getpagesize()) {
		t.Errorf("%+v, %v", p, err)
	}
	for _, bad := range []string{"", ")", begin, begin + "x 50" + rest} {
		if err := p.parseStat(bad); err == nil {
			t.Errorf("%q is read", bad)
		}
	}
}
