package firecracker

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"

	"github.com/vmsan/vmsan/internal/testenv"
)

func TestMetrics(t *testing.T) { onEach(t, readMetrics) }

// readMetrics asks more often than a pipe holds what comes of it.
func readMetrics(t *testing.T, parts testenv.Machine) {
	vm := boot(t, machineSpec(t, parts))
	for range 20 {
		text, err := vm.Metrics(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		var m struct {
			Time int64 `json:"utc_timestamp_ms"`
			API  struct {
				Starts int `json:"instance_start_count"`
			} `json:"put_api_requests"`
		}
		if err := json.Unmarshal(text, &m); err != nil || m.Time == 0 {
			t.Fatalf("got %.100q, %v", text, err)
		}
	}
	if err := vm.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := vm.Metrics(t.Context()); err == nil {
		t.Error("what has ended has metrics")
	}
}

// FuzzMetrics reads what a Firecracker that was taken over may write.
func FuzzMetrics(f *testing.F) {
	f.Add([]byte(`{"utc_timestamp_ms":1}` + "\n"))
	f.Add([]byte("{}\n{}\n\n"))
	f.Add([]byte(strings.Repeat("x", maxMetrics+1)))
	f.Fuzz(func(t *testing.T, written []byte) {
		m := newMetrics()
		m.keep(bytes.NewReader(written))
		select {
		case last := <-m.last:
			if len(last) > maxMetrics || bytes.ContainsRune(last, '\n') {
				t.Errorf("got %d bytes", len(last))
			}
		default:
		}
	})
}
