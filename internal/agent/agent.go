// Package agent is the guest's end of the link: it runs commands, reads and writes files, and takes what
// the host says about the guest, all as the guest API describes. It needs nothing of the guest's image.
package agent

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"math"
	"net/http"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"

	"connectrpc.com/connect"

	"github.com/vmsan/vmsan/internal/guest/proto/filesystem/filesystemconnect"
	"github.com/vmsan/vmsan/internal/guest/proto/guestv1/guestv1connect"
	"github.com/vmsan/vmsan/internal/guest/proto/process/processconnect"
)

// Config says how an agent works. The zero value is usable.
type Config struct {
	// Version is the agent's own, as Info tells it.
	Version string
	// Logger gets what no caller can be told. Default: nothing is logged.
	Logger *slog.Logger

	// DefaultUser runs what names no user. Default: root.
	DefaultUser string
	// DefaultWorkdir is where commands begin, and what an empty path means. Default: the user's home.
	DefaultWorkdir string
	// Environment is what every command's environment begins with, after PATH, HOME, USER and LOGNAME.
	Environment map[string]string
	// AccessToken is what callers of PublicHandler must show. Default: nothing.
	AccessToken string

	// SystemRoot is where etc and run are, for reading accounts and writing identity. Default: "/".
	SystemRoot string
	// DiskMount is where the sandbox's own disk is mounted, for Freeze and Resize: an ext4, not the overlay
	// over it. "/proc/self/fd/N" names one that is out of sight. Default: "/".
	DiskMount string
	// CgroupDirectory is made inside a cgroup v2 mount, for the trees of commands. Default:
	// /sys/fs/cgroup/vmsan. Where that cannot be, trees are found in /proc.
	CgroupDirectory string
	// KeepDirectory holds kept output, in files without names. Default: /var/lib/vmsan.
	KeepDirectory string
	// KeepBytes is how much output of each command is kept. Default: 16 MiB. At least 1 MiB.
	KeepBytes int64

	// ReapOrphans collects the ends of all children of this process: required of PID 1, and wrong for a
	// process that also starts children through os/exec.
	ReapOrphans bool
	// Shielded is true of an agent that the kernel does not kill for want of memory, which the processes that
	// it starts are not to inherit. PID 1 need not be.
	Shielded bool
	// PowerOff ends the guest. Default: PowerOff calls are answered with unimplemented.
	PowerOff func(ctx context.Context, reboot bool) error
	// Settle does what was put off, before the guest is copied. Optional.
	Settle func()
	// Configured is called when the host has said who the guest is. Optional.
	Configured func()
	// Kernel does what Host calls ask of the kernel. Default: the real one.
	Kernel Kernel
}

func (c *Config) setDefaults() {
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.DefaultUser == "" {
		c.DefaultUser = "root"
	}
	if c.SystemRoot == "" {
		c.SystemRoot = "/"
	}
	if c.DiskMount == "" {
		c.DiskMount = "/"
	}
	if c.CgroupDirectory == "" {
		c.CgroupDirectory = "/sys/fs/cgroup/vmsan"
	}
	if c.KeepDirectory == "" {
		c.KeepDirectory = "/var/lib/vmsan"
	}
	if c.KeepBytes == 0 {
		c.KeepBytes = defaultKeepBytes
	}
	c.KeepBytes = max(c.KeepBytes, 1<<20)
	if c.Settle == nil {
		c.Settle = func() {}
	}
	if c.Configured == nil {
		c.Configured = func() {}
	}
	if c.Kernel == nil {
		c.Kernel = linux{}
	}
}

// Agent serves the guest API. Make it with New. Its methods may be called from any goroutine.
type Agent struct {
	config   Config
	accounts accounts
	reaper   *reaper
	forest   forest
	table    table
	watchers watchers
	doors    doors
	cpu      cpuMeter
	contract func() http.Handler // what both doors serve; made once
	stilling sync.Mutex          // held by Freeze and Thaw
	frozen   atomic.Bool         // the disk takes no writes, since Freeze
	unseen   atomic.Bool         // nobody can see what is done: see awakening
	// attending counts processes not yet seen to their end.
	attending sync.WaitGroup

	main mainProcess

	mu       sync.RWMutex
	settings settings
}

// settings are what the host may change while the agent runs. Values are replaced, never written to.
type settings struct {
	user        string
	workdir     string
	environment map[string]string
	token       string
}

// New makes an agent and starts to reap. Close ends it.
func New(config Config) *Agent {
	config.setDefaults()
	a := &Agent{
		config:   config,
		accounts: accounts{etc: filepath.Join(config.SystemRoot, "etc")},
		table:    table{live: map[int]*running{}},
		settings: settings{
			user:        config.DefaultUser,
			workdir:     config.DefaultWorkdir,
			environment: maps.Clone(config.Environment),
			token:       config.AccessToken,
		},
	}
	a.contract = sync.OnceValue(a.newContract)
	a.reaper = newReaper(config.ReapOrphans, func() { a.forest.sweep() })
	a.reaper.shielded = config.Shielded
	a.forest = newForest(config.CgroupDirectory, a.reaper.signal)
	return a
}

// Close kills every tree that runs, waits for their ends, and stops reaping and watching. No call may be
// under way or come later.
func (a *Agent) Close() error {
	var errs []error
	for _, r := range a.table.list(false) {
		errs = append(errs, r.tree.signal(syscall.SIGKILL))
	}
	a.attending.Wait()
	a.watchers.close()
	a.reaper.stop()
	a.table.close()
	a.forest.clear()
	return errors.Join(errs...)
}

// current returns what is configured now.
func (a *Agent) current() settings {
	a.mu.RLock()
	defer a.mu.RUnlock()
	return a.settings
}

// HostHandler serves the whole API, and trusts the caller: for the host's link only.
func (a *Agent) HostHandler() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("/", a.contract())
	mux.Handle(guestv1connect.NewHostHandler(&hostService{agent: a}, connectOptions()...))
	mux.HandleFunc("POST /init", a.serveInit)
	mux.HandleFunc("GET /vmsan/dial", a.serveDial)
	mux.HandleFunc("GET /vmsan/listen", a.serveListen)
	mux.HandleFunc("GET /vmsan/accept", a.serveAccept)
	mux.HandleFunc("GET /vmsan/ports", a.servePorts)
	mux.HandleFunc("GET /vmsan/stats", a.serveStats)
	mux.HandleFunc("GET /vmsan/tree", withSpare(a.serveTree))
	mux.HandleFunc("POST /vmsan/tree", withSpare(a.serveTree))
	mux.HandleFunc("PUT /vmsan/tree", withSpare(a.takeTree))
	mux.HandleFunc("GET /vmsan/list", a.serveList)
	return allowOrigins(withTrust(mux))
}

// PublicHandler serves the contract alone, and asks for the access token if there is one: for guest TCP.
func (a *Agent) PublicHandler() http.Handler {
	return allowOrigins(a.requireToken(a.contract()))
}

func (a *Agent) newContract() http.Handler {
	mux := http.NewServeMux()
	options := connectOptions()
	path, handler := processconnect.NewProcessHandler(&processService{agent: a}, options...)
	mux.Handle(path, exposeStreams(handler))
	mux.Handle("/"+filesystemconnect.FilesystemName+"/", lazily(func() http.Handler {
		_, handler := filesystemconnect.NewFilesystemHandler(&filesystemService{agent: a}, options...)
		return handler
	}))
	mux.HandleFunc("GET /health", serveHealth)
	mux.HandleFunc("GET /metrics", a.serveMetrics)
	mux.HandleFunc("GET /envs", a.serveEnvs)
	mux.HandleFunc("GET /files", a.serveDownload)
	mux.HandleFunc("POST /files", a.serveUpload)
	mux.HandleFunc("POST /files/compose", a.serveCompose)
	return mux
}

// lazily makes a handler when it is first needed, which may be never: making those of a service takes 10 ms
// of a boot under emulation.
func lazily(make func() http.Handler) http.Handler {
	get := sync.OnceValue(make)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { get().ServeHTTP(w, r) })
}

// connectOptions bounds what is read. Answers are never compressed: the link is memory, and the guest's
// CPU is the user's.
func connectOptions() []connect.HandlerOption {
	return []connect.HandlerOption{
		connect.WithReadMaxBytes(maxMessage),
		connect.WithCompressMinBytes(math.MaxInt),
	}
}
