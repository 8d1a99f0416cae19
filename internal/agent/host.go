package agent

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/vmsan/vmsan/internal/guest/proto/guestv1"
	"github.com/vmsan/vmsan/internal/link"
)

// hostService is vmsan.guest.v1.Host.
type hostService struct {
	agent *Agent
}

func (s *hostService) Info(context.Context, *connect.Request[guestv1.InfoRequest]) (*connect.Response[guestv1.InfoResponse], error) {
	release, err := s.agent.config.Kernel.Release()
	if err != nil {
		return nil, connect.NewError(connect.CodeInternal, fmt.Errorf("ask for the kernel's release: %w", err))
	}
	hostname, err := os.Hostname()
	if err != nil {
		return nil, connect.NewError(connect.CodeInternal, err)
	}
	// Absent in a guest without /proc, and then nothing is to be told of it.
	bootID, _ := os.ReadFile(bootIDFile)
	return connect.NewResponse(&guestv1.InfoResponse{
		AgentVersion:  s.agent.config.Version,
		KernelRelease: release,
		ApiVersion:    contractVersion,
		Hostname:      hostname,
		BootId:        strings.TrimSpace(string(bootID)),
		Time:          timestamppb.Now(),
		TreeTracking:  s.agent.forest.name(),
	}), nil
}

const bootIDFile = "/proc/sys/kernel/random/boot_id"

// Configure does each step that is asked for, and reports on it.
func (s *hostService) Configure(_ context.Context, request *connect.Request[guestv1.ConfigureRequest]) (*connect.Response[guestv1.ConfigureResponse], error) {
	response := &guestv1.ConfigureResponse{}
	for _, step := range s.agent.configuration(request.Msg) {
		begun := time.Now()
		report := &guestv1.ConfigureResponse_Step{Name: step.name}
		if err := step.do(); err != nil {
			report.Error = err.Error()
			s.agent.config.Logger.Error("configure", "step", step.name, "error", err)
		}
		report.Microseconds = time.Since(begun).Microseconds()
		response.Steps = append(response.Steps, report)
	}
	s.agent.config.Configured()
	return connect.NewResponse(response), nil
}

// self is the agent as the host speaks to it over the control port.
type self struct{ *Agent }

// mostAdvance is by how much a clock may be behind that was just set. One that
// is further behind was set by somebody else since.
const mostAdvance = 10 * time.Second

// SetClock implements link.Self.
func (a self) SetClock(to time.Time, advance bool) error {
	if behind := time.Until(to); advance && (behind <= 0 || behind > mostAdvance) {
		return nil
	}
	return a.config.Kernel.SetTime(to)
}

// Identify does what Configure does, for a guest that has just booted or was
// restored: over the control port it comes without all the code of a call,
// which an emulated guest has to translate first.
func (a self) Identify(id link.Identity) error {
	request := &guestv1.ConfigureRequest{
		Entropy: id.Entropy, Hostname: &id.Hostname, MachineId: &id.MachineID,
		Environment: &guestv1.Environment{Variables: id.Env},
	}
	if id.User != "" {
		request.DefaultUser = &id.User
	}
	if id.Workdir != "" {
		request.DefaultWorkdir = &id.Workdir
	}
	if id.Address.IsValid() {
		request.Network = &guestv1.Network{Address: id.Address.String(), Gateway: id.Gateway.String()}
		request.Resolver = &guestv1.Resolver{Servers: []string{id.Gateway.String()}}
	}
	if id.BootID != "" {
		request.BootId = &id.BootID
	}
	steps := a.configuration(request)
	if id.Restored {
		steps = a.awakening(steps)
	}
	if len(id.Volumes) > 0 {
		steps = append(steps, step{"volumes", func() error { return a.mountVolumes(id.Volumes) }})
	}
	if id.Pattern {
		steps = append(steps, step{"settle", a.settle})
	}
	if id.Main != nil {
		steps = append(steps, step{"main process", func() error { return a.startMain(*id.Main) }})
	}
	var failed []error
	for _, step := range steps {
		if err := step.do(); err != nil {
			failed = append(failed, fmt.Errorf("configure guest: %s: %w", step.name, err))
		}
	}
	a.config.Configured()
	return errors.Join(failed...)
}

// step is one part of Configure, named after the field that asks for it.
type step struct {
	name string
	do   func() error
}

// configuration lists the steps a request asks for. The clock and the random generator come first: what is
// made after them may be dated, or secret.
func (a *Agent) configuration(request *guestv1.ConfigureRequest) []step {
	var steps []step
	add := func(asked bool, name string, do func() error) {
		if asked {
			steps = append(steps, step{name: name, do: do})
		}
	}
	add(request.Time != nil, "time", func() error { return a.setTime(request.GetTime()) })
	add(len(request.Entropy) > 0, "entropy", func() error { return a.addEntropy(request.GetEntropy()) })
	add(request.Hostname != nil, "hostname", func() error { return a.setHostname(request.GetHostname()) })
	add(request.MachineId != nil, "machine_id", func() error { return a.setMachineID(request.GetMachineId()) })
	add(request.BootId != nil, "boot_id", func() error { return a.setBootID(request.GetBootId()) })
	add(request.Network != nil, "network", func() error { return a.setNetwork(request.GetNetwork()) })
	add(request.Resolver != nil, "resolver", func() error { return a.setResolver(request.GetResolver()) })
	add(request.Environment != nil, "environment", func() error {
		return a.setEnvironment(request.GetEnvironment().GetVariables())
	})
	add(request.DefaultUser != nil, "default_user", func() error { return a.setUser(request.GetDefaultUser()) })
	add(request.DefaultWorkdir != nil, "default_workdir", func() error {
		a.change(func(s *settings) { s.workdir = request.GetDefaultWorkdir() })
		return nil
	})
	add(request.AccessToken != nil, "access_token", func() error {
		a.change(func(s *settings) { s.token = request.GetAccessToken() })
		return nil
	})
	return steps
}

func (a *Agent) setTime(to *timestamppb.Timestamp) error {
	if err := to.CheckValid(); err != nil {
		return err
	}
	return a.config.Kernel.SetTime(to.AsTime())
}

func (a *Agent) addEntropy(entropy []byte) error {
	if len(entropy) > maxEntropy {
		return fmt.Errorf("%d bytes of entropy, more than %d", len(entropy), maxEntropy)
	}
	return a.config.Kernel.AddEntropy(entropy)
}

// setHostname tells the kernel, and the files that programs look in.
func (a *Agent) setHostname(name string) error {
	if name == "" || len(name) > 64 || strings.ContainsAny(name, " \t\r\n\x00/") {
		return fmt.Errorf("hostname %q is not one", name)
	}
	if err := a.config.Kernel.SetHostname(name); err != nil {
		return err
	}
	if err := a.writeSystem("etc/hostname", name+"\n", 0o644); err != nil {
		return err
	}
	return a.setHosts(name)
}

// setHosts lets the name resolve without DNS: sudo and many servers insist. What else is in the file stays.
func (a *Agent) setHosts(name string) error {
	const mark = "# vmsan"
	text, err := readBounded(a.system("etc/hosts"), maxAccountFile)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	var lines []string
	for line := range strings.Lines(string(text)) {
		if !strings.HasSuffix(strings.TrimSpace(line), mark) {
			lines = append(lines, strings.TrimSuffix(line, "\n"))
		}
	}
	if len(lines) == 0 {
		lines = append(lines, "127.0.0.1\tlocalhost", "::1\tlocalhost ip6-localhost ip6-loopback")
	}
	lines = append(lines, "127.0.1.1\t"+name+"\t"+mark)
	return a.writeSystem("etc/hosts", strings.Join(lines, "\n")+"\n", 0o644)
}

func (a *Agent) setMachineID(id string) error {
	if raw, err := hex.DecodeString(id); err != nil || len(raw) != 16 || id != strings.ToLower(id) {
		return fmt.Errorf("machine id %q is not 32 lowercase hex digits", id)
	}
	return a.writeSystem("etc/machine-id", id+"\n", 0o444)
}

// setBootID covers the kernel's own: it is made once per boot, and clones of a snapshot share the boot.
func (a *Agent) setBootID(id string) error {
	raw, err := hex.DecodeString(strings.ReplaceAll(id, "-", ""))
	if err != nil || len(raw) != 16 || len(id) != 36 {
		return fmt.Errorf("boot id %q is not a UUID", id)
	}
	if err := a.writeSystem("run/vmsan/boot_id", id+"\n", 0o444); err != nil {
		return err
	}
	if a.unseen.Load() && bootID() == id {
		// It was covered before this guest was copied, and the cover was written to.
		return nil
	}
	return a.config.Kernel.Cover(a.system("run/vmsan/boot_id"), bootIDFile)
}

func (a *Agent) setNetwork(network *guestv1.Network) error {
	address, err := netip.ParsePrefix(network.GetAddress())
	if err != nil {
		return err
	}
	gateway, err := netip.ParseAddr(network.GetGateway())
	if err != nil {
		return err
	}
	if !address.Addr().Is4() || !address.Contains(gateway) {
		return fmt.Errorf("%s is no IPv4 address with %s beside it", address, gateway)
	}
	return a.config.Kernel.SetNetwork(address, gateway)
}

// setResolver writes resolv.conf. A link in its place, as systemd-resolved makes, is replaced: what it leads
// to may not exist in this guest.
func (a *Agent) setResolver(resolver *guestv1.Resolver) error {
	if len(resolver.GetServers()) > maxResolvers || len(resolver.GetSearch()) > maxResolvers {
		return fmt.Errorf("more than %d resolvers or search domains", maxResolvers)
	}
	var text strings.Builder
	if len(resolver.GetSearch()) > 0 {
		search := strings.Join(resolver.GetSearch(), " ")
		if strings.ContainsAny(search, "\r\n\x00") {
			return fmt.Errorf("search domains %q", search)
		}
		fmt.Fprintf(&text, "search %s\n", search)
	}
	for _, server := range resolver.GetServers() {
		address, err := netip.ParseAddr(server)
		if err != nil {
			return fmt.Errorf("resolver: %w", err)
		}
		fmt.Fprintf(&text, "nameserver %s\n", address)
	}
	return a.writeSystem("etc/resolv.conf", text.String(), 0o644)
}

// setEnvironment also leaves the E2B_ variables in files, where SDKs' code in the guest looks for them.
func (a *Agent) setEnvironment(variables map[string]string) error {
	if _, _, err := environment(account{}, variables); err != nil {
		return err
	}
	a.change(func(s *settings) { s.environment = maps.Clone(variables) })
	for name, value := range variables {
		if !strings.HasPrefix(name, "E2B_") || strings.Contains(name, "/") {
			continue
		}
		if err := a.writeSystem("run/e2b/."+name, value, 0o644); err != nil {
			return err
		}
	}
	return nil
}

func (a *Agent) setUser(name string) error {
	if _, err := a.accounts.lookup(name); err != nil {
		return fmt.Errorf("default user '%s': %w", name, err)
	}
	a.change(func(s *settings) { s.user = name })
	return nil
}

// system is where a file of the guest's system is.
func (a *Agent) system(path string) string {
	return filepath.Join(a.config.SystemRoot, path)
}

// writeSystem replaces a file as a whole, so that none is ever seen half written. It does not wait for the
// disk: the host says it all again after the next boot.
func (a *Agent) writeSystem(path, text string, mode fs.FileMode) error {
	path = a.system(path)
	if a.unseen.Load() && overwrite(path, text, mode) == nil {
		return nil
	}
	directory := filepath.Dir(path)
	if err := os.MkdirAll(directory, 0o755); err != nil {
		return err
	}
	file, err := os.CreateTemp(directory, "."+filepath.Base(path)+"-")
	if err != nil {
		return err
	}
	if err := fillFile(file, text, mode); err != nil {
		os.Remove(file.Name())
		return err
	}
	if err := os.Rename(file.Name(), path); err != nil {
		os.Remove(file.Name())
		return err
	}
	return nil
}

func fillFile(file *os.File, text string, mode fs.FileMode) error {
	_, err := file.WriteString(text)
	return errors.Join(err, file.Chmod(mode), file.Close())
}

// Freeze makes a disk still, for a copy of it.
func (s *hostService) Freeze(ctx context.Context, request *connect.Request[guestv1.FreezeRequest]) (*connect.Response[guestv1.FreezeResponse], error) {
	s.agent.config.Settle()
	s.agent.stilling.Lock()
	defer s.agent.stilling.Unlock()
	if err := stillWanted(ctx); err != nil {
		return nil, err
	}
	if err := s.agent.forest.hold(true); err != nil {
		return nil, connect.NewError(connect.CodeInternal, fmt.Errorf("hold commands: %w", err))
	}
	if request.Msg.GetCommandsOnly() {
		return connect.NewResponse(&guestv1.FreezeResponse{}), nil
	}
	s.agent.frozen.Store(true)
	if err := s.onDisk("freeze", request.Msg.GetMount(), s.agent.config.Kernel.Freeze); err != nil {
		s.agent.forest.hold(false)
		return nil, err
	}
	return connect.NewResponse(&guestv1.FreezeResponse{}), nil
}

func (s *hostService) Thaw(ctx context.Context, request *connect.Request[guestv1.ThawRequest]) (*connect.Response[guestv1.ThawResponse], error) {
	s.agent.stilling.Lock()
	defer s.agent.stilling.Unlock()
	if err := stillWanted(ctx); err != nil {
		return nil, err
	}
	if err := s.onDisk("thaw", request.Msg.GetMount(), s.agent.config.Kernel.Thaw); err != nil {
		return nil, err
	}
	s.agent.frozen.Store(false)
	if err := s.agent.forest.hold(false); err != nil {
		return nil, connect.NewError(connect.CodeInternal, fmt.Errorf("let commands go on: %w", err))
	}
	return connect.NewResponse(&guestv1.ThawResponse{}), nil
}

// stillWanted fails when whoever asked is gone. Others have asked since, and what comes late would undo that: a
// guest that is frozen after it was thawed stays so.
func stillWanted(ctx context.Context) error {
	if ctx.Err() != nil {
		return connect.NewError(connect.CodeCanceled, fmt.Errorf("whoever asked for it is gone: %w", context.Cause(ctx)))
	}
	return nil
}

func (s *hostService) Resize(_ context.Context, request *connect.Request[guestv1.ResizeRequest]) (*connect.Response[guestv1.ResizeResponse], error) {
	response := &guestv1.ResizeResponse{}
	err := s.onDisk("grow", request.Msg.GetMount(), func(mount string) (err error) {
		response.Bytes, err = s.agent.config.Kernel.Grow(mount, request.Msg.GetDevice(), request.Msg.GetBytes())
		return err
	})
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(response), nil
}

// onDisk does something to the filesystem at mount, or to the one configured.
func (s *hostService) onDisk(what, mount string, do func(mount string) error) error {
	if mount == "" {
		mount = s.agent.config.DiskMount
	}
	if !filepath.IsAbs(mount) || len(mount) > maxPath {
		return connect.NewError(connect.CodeInvalidArgument, fmt.Errorf("mount %q is not an absolute path", mount))
	}
	err := do(mount)
	if errors.Is(err, syscall.EOPNOTSUPP) {
		return connect.NewError(connect.CodeUnimplemented, fmt.Errorf("%s %s: its filesystem cannot: %w", what, mount, err))
	}
	if err != nil {
		return connect.NewError(connect.CodeInternal, fmt.Errorf("%s %s: %w", what, mount, err))
	}
	return nil
}

func (s *hostService) PowerOff(ctx context.Context, request *connect.Request[guestv1.PowerOffRequest]) (*connect.Response[guestv1.PowerOffResponse], error) {
	powerOff := s.agent.config.PowerOff
	if powerOff == nil {
		return nil, connect.NewError(connect.CodeUnimplemented, errors.New("this agent does not end its guest"))
	}
	// Once begun it is not called off by a host that hangs up.
	ctx = context.WithoutCancel(ctx)
	// Whatever else takes too long, what was written until now is not lost.
	syscall.Sync()
	s.agent.stopMain(mainGrace(time.Duration(request.Msg.GetGraceMilliseconds()) * time.Millisecond))
	if err := powerOff(ctx, request.Msg.GetMode() == guestv1.PowerOffMode_POWER_OFF_MODE_REBOOT); err != nil {
		return nil, connect.NewError(connect.CodeInternal, fmt.Errorf("power off: %w", err))
	}
	return connect.NewResponse(&guestv1.PowerOffResponse{}), nil
}
