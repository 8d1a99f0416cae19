package usage

import (
	"os"
	"testing"
	"time"
)

func TestRunnable(t *testing.T) {
	before, err := RunnableOf(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	const work = 50 * time.Millisecond
	for after := before; after.Ran-before.Ran < work; {
		if after, err = RunnableOf(os.Getpid()); err != nil {
			t.Fatal(err)
		}
		if after.Ran < before.Ran || after.Waited < before.Waited {
			t.Fatalf("it was %+v, and then %+v", before, after)
		}
	}
	if _, err := RunnableOf(1 << 30); err == nil {
		t.Error("a process that does not exist was measured")
	}
}
