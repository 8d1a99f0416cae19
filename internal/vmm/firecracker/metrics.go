package firecracker

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"sync"
)

// maxMetrics bounds the metrics in bytes. Firecracker's are about 20,000.
const maxMetrics = 512 << 10

// metrics is what Firecracker counts. It writes that each minute, and when it
// is asked for.
type metrics struct {
	pipe pipe
	last chan []byte // holds what was written last, if nobody has taken it
	turn sync.Mutex  // held from asking for them until they are there
}

func newMetrics() *metrics { return &metrics{last: make(chan []byte, 1)} }

func (vm *virtualMachine) openMetrics(dir string) (err error) {
	if vm.metrics.pipe, err = newPipe(filepath.Join(dir, "metrics"), vm.user); err != nil {
		return err
	}
	vm.reader.Go(func() {
		defer vm.metrics.pipe.read.Close()
		vm.metrics.keep(vm.metrics.pipe.read)
	})
	return nil
}

// keep reads lines, and so keeps the pipe from getting full.
func (m *metrics) keep(from io.Reader) {
	lines := bufio.NewScanner(from)
	lines.Buffer(nil, maxMetrics)
	for lines.Scan() {
		m.drop()
		m.last <- append([]byte(nil), lines.Bytes()...)
	}
	io.Copy(io.Discard, from)
}

func (m *metrics) drop() {
	select {
	case <-m.last:
	default:
	}
}

// Metrics has Firecracker write what it counts.
func (vm *virtualMachine) Metrics(ctx context.Context) (json.RawMessage, error) {
	text, err := vm.flush(ctx)
	if err == nil && !json.Valid(text) {
		err = errors.New("they are not JSON")
	}
	if err != nil {
		return nil, fmt.Errorf("read Firecracker's metrics: %w", err)
	}
	return text, nil
}

func (vm *virtualMachine) flush(ctx context.Context) ([]byte, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, apiTime, fmt.Errorf("they did not come within %s", apiTime))
	defer cancel()
	vm.metrics.turn.Lock()
	defer vm.metrics.turn.Unlock()
	vm.metrics.drop()
	if err := vm.api.each(ctx, []request{flushMetrics()}); err != nil {
		return nil, err
	}
	select {
	case text := <-vm.metrics.last:
		return text, nil
	case <-vm.gone:
		return nil, errEnded
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}
