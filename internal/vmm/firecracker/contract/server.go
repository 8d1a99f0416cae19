package contract

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

var serverArguments = map[string]struct{ value, many bool }{
	"id": {value: true}, "start-time-us": {value: true}, "start-time-cpu-us": {value: true}, "parent-cpu-time-us": {value: true},
	"api-sock": {value: true}, "no-seccomp": {}, "seccomp-filter": {value: true}, "version": {},
	"metrics-path": {value: true}, "log-path": {value: true}, "level": {value: true}, "show-level": {},
}

// RequestLog is where, in its jail, the server keeps what it was asked for: a
// line each, with the fault behind it if it was refused.
const RequestLog = "/requests"

// server is a Firecracker.
type server struct {
	id      string
	log     *os.File
	metrics *os.File // nil: nobody wants them

	mu      sync.Mutex // held by the request that is carried out
	config  machine
	touched bool   // something besides the logger was configured
	state   string // as the API has it
	guest   *guest
}

// machine is what was configured, by path, as it came.
type machine map[string]map[string]any

// The states.
const (
	notStarted = "Not started"
	running    = "Running"
	paused     = "Paused"
)

func runServer(args []string) error {
	values, rest, err := parseArguments(args, serverArguments)
	if err != nil || len(rest) > 0 {
		return exitError{faultf("Arguments parsing error: %v %v", err, rest), 153}
	}
	if values["version"] != nil {
		fmt.Printf("Firecracker v%s\n", Version)
		return nil
	}
	if values["id"] == nil || values["api-sock"] == nil {
		return exitError{faultf("Arguments parsing error: no id or socket"), 153}
	}
	if os.Getuid() == 0 {
		return errors.New("the VMM runs as root")
	}
	if err := filter(values); err != nil {
		return err
	}
	s := &server{id: values["id"][0], config: machine{}, state: notStarted}
	if s.log, err = os.OpenFile(RequestLog, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600); err != nil {
		return err
	}
	if path := values["log-path"]; path != nil {
		if err := s.openLog(path[0]); err != nil {
			return exitError{err, 1}
		}
	}
	if path := values["metrics-path"]; path != nil {
		if s.metrics, err = os.OpenFile(path[0], os.O_RDWR|unix.O_NONBLOCK, 0); err != nil {
			return exitError{err, 1}
		}
	}
	listener, err := net.Listen("unix", values["api-sock"][0])
	if err != nil {
		return err
	}
	carrier := http.Server{Handler: s, ConnContext: func(ctx context.Context, c net.Conn) context.Context {
		return context.WithValue(ctx, connectionOf{}, c)
	}}
	return carrier.Serve(listener)
}

// connectionOf is the key of a request's connection in its context.
type connectionOf struct{}

// hasHungUp tells whether whoever made a request is gone. Firecracker carries
// requests out one after the other, as they come, and looks for this first
// (micro_http's server.rs); here each connection has a goroutine of its own,
// and one that is late must not undo what a later client has been told.
func hasHungUp(r *http.Request) bool {
	raw, err := r.Context().Value(connectionOf{}).(*net.UnixConn).SyscallConn()
	if err != nil {
		return true
	}
	gone := false
	err = raw.Control(func(fd uintptr) {
		look := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLRDHUP}}
		n, err := unix.Poll(look, 0)
		for err == unix.EINTR {
			n, err = unix.Poll(look, 0)
		}
		gone = n > 0
	})
	return gone || err != nil
}

// filter puts a filter of system calls over the process, unless it is not to.
// It lets all of them pass: that there is one can be seen in /proc.
func filter(values map[string][]string) error {
	path := values["seccomp-filter"]
	switch {
	case values["no-seccomp"] != nil && path != nil:
		return exitError{faultf("Arguments parsing error: Argument 'no-seccomp' cannot be used together with argument 'seccomp-filter'."), 153}
	case values["no-seccomp"] != nil:
		return nil
	case path != nil:
		if err := checkFilter(path[0]); err != nil {
			return exitError{faultf("Seccomp error: %w", err), 1}
		}
	}
	allow := []unix.SockFilter{{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW}}
	return setFilter(allow)
}

// checkFilter tells what the contract's filters are by how they begin.
func checkFilter(path string) error {
	text, err := os.ReadFile(path)
	if err == nil {
		err = cannotWrite(path)
	}
	if err == nil && !strings.HasPrefix(string(text), Filter) {
		err = faultf("Filter deserialization failed: Bitcode deserialization failed")
	}
	return err
}

// Filter is what files of filters begin with that the server takes.
const Filter = "contract filter"

const maxBody = 51200 // Firecracker's own default

func (s *server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(io.LimitReader(r.Body, maxBody))
	if err != nil {
		return
	}
	s.mu.Lock()
	if hasHungUp(r) {
		s.mu.Unlock()
		panic(http.ErrAbortHandler) // no answer, not even an empty one
	}
	answer, err := s.handle(r.Method, r.URL.Path, body)
	s.note(r.Method, r.URL.Path, body, err)
	s.mu.Unlock()
	w.Header().Set("Content-Type", "application/json")
	switch {
	case err != nil:
		w.WriteHeader(http.StatusBadRequest)
		answer = map[string]string{"fault_message": err.Error()}
	case answer == nil:
		w.WriteHeader(http.StatusNoContent)
		return
	}
	json.NewEncoder(w).Encode(answer)
}

func (s *server) note(method, path string, body []byte, err error) {
	line := strings.TrimSpace(fmt.Sprintf("%s %s %s", method, path, body))
	if err != nil {
		line += " -> " + err.Error()
	}
	fmt.Fprintln(s.log, line)
}

// Death is a path that ends the server: no answer comes, as from a Firecracker
// that dies.
const Death = "/death"

func (s *server) handle(method, path string, body []byte) (answer any, err error) {
	if path == Death {
		os.Exit(148)
	}
	e, id, err := find(method, path)
	if err == nil {
		err = e.check(body, id)
	}
	if err != nil {
		return nil, err
	}
	switch {
	case e.stage == beforeBoot && s.state != notStarted:
		return nil, faultf(faultPostBoot)
	case e.stage == afterBoot && s.state == notStarted:
		return nil, faultf(faultPreBoot)
	}
	var fields map[string]any
	if method != "GET" {
		if err := json.Unmarshal(body, &fields); err != nil {
			return nil, err
		}
	}
	if method == "PATCH" && path != "/vm" {
		return nil, s.update(path, fields)
	}
	return s.carryOut(path, fields)
}

// update changes a part of a machine that runs.
func (s *server) update(path string, fields map[string]any) error {
	part, ok := s.config[path]
	if !ok {
		return faultf("Invalid device: %s", path)
	}
	changed := maps.Clone(part)
	maps.Copy(changed, fields)
	mib, _ := s.config["/machine-config"]["mem_size_mib"].(float64)
	if amount, ok := changed["amount_mib"].(float64); ok && amount > mib {
		return faultf("Balloon config error: Requested pages exceed guest memory")
	}
	if err := s.config.try(path, changed); err != nil {
		return err
	}
	s.config[path] = changed
	return nil
}

func (s *server) carryOut(path string, fields map[string]any) (answer any, err error) {
	switch path {
	case "/":
		return map[string]string{"app_name": "Firecracker", "id": s.id, "state": s.state, "vmm_version": Version}, nil
	case "/version":
		return map[string]string{"firecracker_version": Version}, nil
	case "/vm/config":
		return s.config, nil
	case "/logger":
		return nil, s.openLog(fields["log_path"].(string))
	case "/actions":
		return nil, s.act(fields["action_type"].(string))
	case "/vm":
		return nil, s.change(fields["state"].(string))
	case "/snapshot/create":
		return nil, s.save(fields["snapshot_path"].(string), fields["mem_file_path"].(string))
	case "/snapshot/load":
		return nil, s.load(fields)
	}
	s.touched = true
	if err := s.config.try(path, fields); err != nil {
		return nil, err
	}
	s.config[path] = fields
	return nil, nil
}

func (s *server) openLog(path string) error {
	log, err := os.OpenFile(path, os.O_WRONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return faultf("Logger error: %w", err)
	}
	defer log.Close()
	_, err = fmt.Fprintf(log, "warning: the contract's Firecracker %s logs here\n", s.id)
	return err
}

// try does with a part what the real one does at once: it opens what it is
// made of.
func (m machine) try(path string, fields map[string]any) error {
	switch {
	case path == "/boot-source":
		return tryBoot(fields)
	case strings.HasPrefix(path, "/drives/"):
		return tryDrive(fields)
	case strings.HasPrefix(path, "/network-interfaces/"):
		tap, err := openTap(fields["host_dev_name"].(string))
		if err != nil {
			return faultf("Network config error: Could not create the network device: Open tap device failed: %w", err)
		}
		return tap.Close()
	}
	return nil
}

func tryBoot(fields map[string]any) error {
	for name, magic := range map[string]string{"kernel_image_path": "\x7fELF", "initrd_path": "070701"} {
		path, ok := fields[name].(string)
		if !ok {
			continue
		}
		if err := cannotWrite(path); err != nil {
			return faultf("Boot source error: %w", err)
		}
		head := make([]byte, len(magic))
		file, err := os.Open(path)
		if err != nil {
			return faultf("Boot source error: The kernel or initrd cannot be opened: %w", err)
		}
		_, err = io.ReadFull(file, head)
		file.Close()
		if err != nil || string(head) != magic {
			return faultf("Boot source error: %s begins with %q", path, head)
		}
	}
	return nil
}

// cannotWrite fails if a file could be written that other jails have too.
func cannotWrite(path string) error {
	if file, err := os.OpenFile(path, os.O_WRONLY, 0); err == nil {
		file.Close()
		return fmt.Errorf("%s can be written from within the jail", path)
	}
	return nil
}

func tryDrive(fields map[string]any) error {
	path, _ := fields["path_on_host"].(string)
	flags := os.O_RDWR
	if fields["is_read_only"] == true {
		flags = os.O_RDONLY
		if err := cannotWrite(path); err != nil {
			return faultf("Drive config error: %w", err)
		}
	}
	file, err := os.OpenFile(path, flags, 0)
	if err != nil {
		return faultf("Drive config error: Unable to create the virtio block device: Error manipulating the backing file: %w", err)
	}
	return file.Close()
}

func (s *server) act(what string) error {
	switch {
	case what != "InstanceStart" && s.state == notStarted:
		return faultf(faultPreBoot)
	case what == "FlushMetrics":
		return s.flushMetrics()
	case what != "InstanceStart":
		return nil
	case s.state != notStarted:
		return faultf(faultPostBoot)
	case s.config["/boot-source"] == nil:
		return faultf("Start microvm error: Cannot start microvm without kernel configuration.")
	}
	if err := kvm(); err != nil {
		return faultf("Start microvm error: Internal error while starting microVM: %w", err)
	}
	if err := s.begin(); err != nil {
		return faultf("Start microvm error: %w", err)
	}
	s.state = running
	return s.guest.resume()
}

// flushMetrics writes a line that is as long as the real one's.
func (s *server) flushMetrics() error {
	if s.metrics == nil {
		return nil
	}
	_, err := fmt.Fprintf(s.metrics, `{"utc_timestamp_ms":%d,"put_api_requests":{"instance_start_count":1},"padding":%q}`+"\n",
		time.Now().UnixMilli(), strings.Repeat("x", 20_000))
	return err
}

// kvm looks whether the device is the jail's. That it works is not to be had.
func kvm() error {
	var stat unix.Stat_t
	if err := unix.Stat("/dev/kvm", &stat); err != nil {
		return err
	}
	if stat.Rdev != unix.Mkdev(10, 232) || stat.Uid != uint32(os.Getuid()) {
		return errors.New("/dev/kvm is not the jail's")
	}
	return nil
}

// begin makes the guest, which stands still.
func (s *server) begin() (err error) {
	for path, fields := range s.config {
		name, ok := fields["host_dev_name"].(string)
		if !ok || !strings.HasPrefix(path, "/network-interfaces/") {
			continue
		}
		// For as long as there is this process.
		if tap, err := openTap(name); err != nil {
			return err
		} else {
			keep = append(keep, tap)
		}
	}
	if boot := s.config["/boot-source"]; boot != nil {
		fmt.Printf("contract guest of %s: %s\r\n", s.id, boot["boot_args"])
	}
	s.guest, err = newGuest(s.config["/vsock"])
	return err
}

var keep []*os.File

func (s *server) change(wanted string) error {
	if wanted == "Paused" {
		s.state = paused
		return s.guest.pause()
	}
	s.state = running
	return s.guest.resume()
}

// parts are the names of what a machine is made of, in order.
func (m machine) parts() []string { return slices.Sorted(maps.Keys(m)) }
