package agent

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"time"
)

func serveHealth(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(http.StatusNoContent)
}

func (a *Agent) serveEnvs(w http.ResponseWriter, _ *http.Request) {
	variables := a.current().environment
	if variables == nil {
		variables = map[string]string{}
	}
	w.Header().Set("Cache-Control", "no-store")
	writeJSON(w, http.StatusOK, variables)
}

// metrics is the answer to GET /metrics. Sizes are in bytes unless their name says MiB.
type metrics struct {
	Timestamp   int64   `json:"ts"` // seconds
	CPUs        int     `json:"cpu_count"`
	CPUUsed     float64 `json:"cpu_used_pct"`
	MemTotal    uint64  `json:"mem_total"`
	MemUsed     uint64  `json:"mem_used"`
	MemCache    uint64  `json:"mem_cache"`
	MemTotalMiB uint64  `json:"mem_total_mib"`
	MemUsedMiB  uint64  `json:"mem_used_mib"`
	DiskUsed    uint64  `json:"disk_used"`
	DiskTotal   uint64  `json:"disk_total"`
}

func (a *Agent) serveMetrics(w http.ResponseWriter, _ *http.Request) {
	m, err := a.measure(time.Now())
	if err != nil {
		writeHTTPError(w, err)
		return
	}
	w.Header().Set("Cache-Control", "no-store")
	writeJSON(w, http.StatusOK, m)
}

func (a *Agent) measure(now time.Time) (*metrics, error) {
	memory, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return nil, fmt.Errorf("measure memory: %w", err)
	}
	used, err := a.cpu.used()
	if err != nil {
		return nil, fmt.Errorf("measure CPU: %w", err)
	}
	diskTotal, diskUsed, err := a.measureDisk()
	if err != nil {
		return nil, err
	}
	total, available, cache := parseMeminfo(memory)
	m := &metrics{
		Timestamp: now.Unix(),
		CPUs:      runtime.NumCPU(),
		CPUUsed:   used,
		MemTotal:  total,
		MemUsed:   total - min(available, total),
		MemCache:  cache,
		DiskTotal: diskTotal,
		DiskUsed:  diskUsed,
	}
	m.MemTotalMiB, m.MemUsedMiB = m.MemTotal>>20, m.MemUsed>>20
	return m, nil
}

// parseMeminfo reads /proc/meminfo, whose lines are "Name:   123 kB", and returns bytes.
func parseMeminfo(text []byte) (total, available, cache uint64) {
	scanner := bufio.NewScanner(bytes.NewReader(text))
	for scanner.Scan() {
		name, rest, _ := strings.Cut(scanner.Text(), ":")
		fields := strings.Fields(rest)
		if len(fields) == 0 {
			continue
		}
		kib, err := strconv.ParseUint(fields[0], 10, 54)
		if err != nil {
			continue
		}
		switch name {
		case "MemTotal":
			total = kib << 10
		case "MemAvailable":
			available = kib << 10
		case "Cached", "SReclaimable":
			cache += kib << 10
		}
	}
	return total, available, cache
}

// cpuMeter tells how busy the CPUs were since it was asked last; the first time, since boot.
type cpuMeter struct {
	mu          sync.Mutex
	busy, total uint64
}

// used returns percent of all CPUs together, with two decimals.
func (c *cpuMeter) used() (float64, error) {
	text, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, err
	}
	busy, total := parseCPUTime(text)
	c.mu.Lock()
	defer c.mu.Unlock()
	// Counters of a restored or migrated guest may step back.
	spanBusy, span := max(busy, c.busy)-c.busy, max(total, c.total)-c.total
	c.busy, c.total = busy, total
	if span == 0 {
		return 0, nil
	}
	return float64(spanBusy*10000/span) / 100, nil
}

// parseCPUTime reads the first line of /proc/stat: "cpu user nice system idle iowait irq softirq steal ...",
// in ticks. Guest time is in user already.
func parseCPUTime(text []byte) (busy, total uint64) {
	line, _, _ := bytes.Cut(text, []byte{'\n'})
	fields := strings.Fields(string(line))
	if len(fields) < 5 || fields[0] != "cpu" {
		return 0, 0
	}
	for i, field := range fields[1:min(len(fields), 9)] {
		ticks, err := strconv.ParseUint(field, 10, 56)
		if err != nil {
			return 0, 0
		}
		total += ticks
		if i != 3 && i != 4 { // idle, iowait
			busy += ticks
		}
	}
	return busy, total
}

// initRequest is the body of POST /init. What else the contract names there has no meaning here.
type initRequest struct {
	AccessToken    *string           `json:"accessToken"`
	Environment    map[string]string `json:"envVars"`
	Timestamp      *time.Time        `json:"timestamp"`
	DefaultUser    *string           `json:"defaultUser"`
	DefaultWorkdir *string           `json:"defaultWorkdir"`
}

// serveInit is the contract's own way to configure a guest. It exists on the host's link only, yet asks
// for the token, once there is one.
func (a *Agent) serveInit(w http.ResponseWriter, r *http.Request) {
	var request initRequest
	if err := readJSON(w, r, &request); err != nil {
		writeHTTPError(w, err)
		return
	}
	if !a.mayInit(r, &request) {
		http.Error(w, "access token validation failed", http.StatusUnauthorized)
		return
	}
	if err := a.initialize(&request); err != nil {
		writeHTTPError(w, err)
		return
	}
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(http.StatusNoContent)
}

// mayInit takes the token in force from the header, or repeated in the body.
func (a *Agent) mayInit(r *http.Request, request *initRequest) bool {
	token := a.current().token
	return a.showsToken(r) || (request.AccessToken != nil && sameSecret(token, *request.AccessToken))
}

func (a *Agent) initialize(request *initRequest) error {
	if request.Timestamp != nil {
		if err := a.config.Kernel.SetTime(*request.Timestamp); err != nil {
			return fmt.Errorf("set the clock: %w", err)
		}
	}
	if request.DefaultUser != nil && *request.DefaultUser != "" {
		if err := a.setUser(*request.DefaultUser); err != nil {
			return httpErrorf(http.StatusBadRequest, "%v", err)
		}
	}
	if request.Environment != nil {
		if err := a.setEnvironment(request.Environment); err != nil {
			return httpErrorf(http.StatusBadRequest, "%v", err)
		}
	}
	if request.DefaultWorkdir != nil {
		a.change(func(s *settings) { s.workdir = *request.DefaultWorkdir })
	}
	if request.AccessToken != nil {
		a.change(func(s *settings) { s.token = *request.AccessToken })
	}
	return nil
}

// change replaces settings for all calls that begin from now on.
func (a *Agent) change(set func(*settings)) {
	a.mu.Lock()
	defer a.mu.Unlock()
	set(&a.settings)
}

// readJSON decodes a body of bounded size; an empty one leaves value as it is. Unknown fields are ignored.
func readJSON(w http.ResponseWriter, r *http.Request, value any) error {
	body := http.MaxBytesReader(w, r.Body, maxInitBody)
	data := new(bytes.Buffer)
	if _, err := data.ReadFrom(body); err != nil {
		return httpErrorf(http.StatusBadRequest, "read the body: %v", err)
	}
	if data.Len() == 0 {
		return nil
	}
	if err := json.Unmarshal(data.Bytes(), value); err != nil {
		return httpErrorf(http.StatusBadRequest, "read the body: %v", err)
	}
	return nil
}
