package sandbox

import (
	"strings"
	"testing"
	"time"

	"github.com/vmsan/vmsan/api"
	"github.com/vmsan/vmsan/internal/store"
)

// A2: what the system that --timeout comes from takes, and not its nonsense.
func TestParseLimit(t *testing.T) {
	const day = 24 * time.Hour
	for text, want := range map[string]time.Duration{
		"10": 10 * time.Minute, "30s": 30 * time.Second, "5m": 5 * time.Minute, "2h": 2 * time.Hour, "1d": day,
		"1h30m": 90 * time.Minute, "1d12h": 36 * time.Hour, "2h30m15s": 2*time.Hour + 30*time.Minute + 15*time.Second,
		"1H30M": 90 * time.Minute, "2D": 2 * day, "0": 0, "0s": 0, "007": 7 * time.Minute, "90m": 90 * time.Minute,
		"30m1h": 90 * time.Minute, "1h 30m": 90 * time.Minute, " 5m ": 5 * time.Minute, "5 m": 5 * time.Minute, "1m1m": 2 * time.Minute,
		"3650d": 3650 * day,
	} {
		got, err := ParseLimit("--timeout", text)
		if err != nil || got != want {
			t.Errorf("%q is %s, %v; want %s", text, got, err, want)
		}
	}
	for _, text := range []string{
		"", " ", "abc", "1.5h", "-5", "+5", "10x5s", "5s10x", "h", "1h30", "30 1h", "1e3", "0x10", "5m\n5", "1w", "500ms", "½h", "１０",
		"3651d", "999999999d", "9999999999", "99999999999999999999s", strings.Repeat("9d", 33), strings.Repeat("1s", 10000), "5m;reboot", "none",
	} {
		got, err := ParseLimit("--timeout", text)
		if !api.HasCode(err, api.ErrValidationDuration) {
			t.Errorf("%.40q is %s, %v", text, got, err)
			continue
		}
		if e := api.AsError(err); e.Flag != "--timeout" || !strings.Contains(e.Message, "--timeout") {
			t.Errorf("%.40q: %s does not name the flag", text, e.Message)
		}
	}
}

func FuzzParseLimit(f *testing.F) {
	for _, text := range []string{"10", "1h30m", "1.5h", " 5 m", "999999999d", "-5", "9d9d9d9d"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		d, err := ParseLimit("--timeout", text)
		if err == nil && (d < 0 || d > maxLimit) {
			t.Errorf("%q is %s", text, d)
		}
	})
}

func TestLimitOptions(t *testing.T) {
	for name, c := range map[string]struct {
		o    CreateOptions
		code api.Code
	}{
		"short":               {CreateOptions{Timeout: time.Millisecond}, api.ErrValidationDuration},
		"negative":            {CreateOptions{IdleTimeout: -time.Hour}, api.ErrValidationDuration},
		"long":                {CreateOptions{Timeout: maxLimit + 1}, api.ErrValidationDuration},
		"unknown action":      {CreateOptions{Timeout: time.Hour, OnTimeout: "explode"}, api.ErrValidationChoice},
		"saved with a volume": {CreateOptions{OnTimeout: store.OnTimeoutSnapshot, Volumes: []store.Mount{{Volume: "data", Path: "/data"}}}, api.ErrValidationFlags},
		"fine":                {CreateOptions{Timeout: time.Second, IdleTimeout: maxLimit, OnTimeout: store.OnTimeoutRemove, Network: "none"}, ""},
	} {
		err := c.o.Check()
		if c.code == "" && err != nil || c.code != "" && !api.HasCode(err, c.code) {
			t.Errorf("%s: got %v, want %s", name, err, c.code)
		}
	}
}

func TestEventFilter(t *testing.T) {
	now := time.Now()
	e := api.Event{Time: now, Type: api.EventVMStop, VM: "vm0123456789", Name: "web"}
	for name, c := range map[string]struct {
		f    EventFilter
		id   string
		want bool
	}{
		"all":             {EventFilter{}, "", true},
		"type":            {EventFilter{Type: "vm.stop"}, "", true},
		"noun":            {EventFilter{Type: "vm"}, "", true},
		"half a noun":     {EventFilter{Type: "v"}, "", false},
		"other type":      {EventFilter{Type: "vm.start"}, "", false},
		"later":           {EventFilter{Since: now.Add(time.Second)}, "", false},
		"gone, by name":   {EventFilter{VM: "web"}, "", true},
		"gone, by id":     {EventFilter{VM: "vm0123"}, "", true},
		"another is web":  {EventFilter{VM: "web"}, "vm9999999999", false},
		"still there":     {EventFilter{VM: "web"}, "vm0123456789", true},
		"another name":    {EventFilter{VM: "we"}, "", false},
		"a copy's source": {EventFilter{VM: "copy"}, "vm5555555555", false},
	} {
		if got := c.f.matches(e, c.id); got != c.want {
			t.Errorf("%s: %v", name, got)
		}
	}
	fork := api.Event{Time: now, Type: api.EventVMFork, VM: "vm0123456789", Copies: []string{"vm5555555555"}}
	if !(EventFilter{VM: "copy"}).matches(fork, "vm5555555555") {
		t.Error("a copy is not told of where it comes from")
	}
	if err := (EventFilter{Type: "vmm"}).Check(); !api.HasCode(err, api.ErrValidationChoice) {
		t.Errorf("got %v", err)
	}
}
