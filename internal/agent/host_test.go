package agent

import (
	"fmt"
	"strconv"
	"sync"
	"time"
)

func itoa(n int) string { return strconv.Itoa(n) }

// recordingKernel writes down what it is asked to do.
type recordingKernel struct {
	mu    sync.Mutex
	calls []string
	fail  map[string]error // by the first word of a call
}

func (k *recordingKernel) record(format string, args ...any) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	call := fmt.Sprintf(format, args...)
	k.calls = append(k.calls, call)
	var word string
	fmt.Sscan(call, &word)
	return k.fail[word]
}

func (k *recordingKernel) Release() (string, error) { return "6.1.0-test", k.record("uname") }
func (k *recordingKernel) SetTime(to time.Time) error {
	return k.record("date %s", to.UTC().Format(time.RFC3339Nano))
}
func (k *recordingKernel) SetHostname(name string) error { return k.record("hostname %s", name) }
func (k *recordingKernel) AddEntropy(entropy []byte) error {
	return k.record("entropy %x", entropy)
}
func (k *recordingKernel) Cover(_, target string) error {
	return k.record("mount --bind boot_id %s", target)
}
func (k *recordingKernel) Freeze(path string) error { return k.record("fsfreeze -f %s", path) }
func (k *recordingKernel) Thaw(path string) error   { return k.record("fsfreeze -u %s", path) }
func (k *recordingKernel) Grow(mount, device string) (uint64, error) {
	return 1 << 30, k.record("resize2fs %s %s", mount, device)
}
