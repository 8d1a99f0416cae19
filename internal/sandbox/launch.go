package sandbox

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"time"

	"github.com/vmsan/vmsan/api"
	"github.com/vmsan/vmsan/internal/fault"
	"github.com/vmsan/vmsan/internal/jail"
	"github.com/vmsan/vmsan/internal/monitor"
	"github.com/vmsan/vmsan/internal/store"
)

// launch starts the monitor of r, which takes over the lock and the first
// stream to the guest, if there is one, and waits until it says that the
// sandbox runs. The monitor is a session of its own, so
// nothing that happens to the caller from here on harms the sandbox.
func (s *Service) launch(ctx context.Context, r *store.Record, lock *store.Lock, first *os.File) error {
	if err := s.endDeadHolders(ctx, r); err != nil {
		return err
	}
	program, err := s.program()
	if err != nil {
		return err
	}
	report, theirs, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("make pipe to monitor: %w", err)
	}
	defer report.Close()
	log, err := os.OpenFile(s.layout.MonitorLog(r.ID), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		theirs.Close()
		return fmt.Errorf("open monitor's log: %w", err)
	}
	// The monitor outlives whoever waits for a file of the caller's to be
	// closed, such as a shell script's lock.
	if err := jail.KeepFiles(); err != nil {
		theirs.Close()
		log.Close()
		return err
	}
	cmd := exec.Command(program, monitor.Command, r.ID, s.layout.Dir)
	cmd.Dir = "/"
	cmd.Env = append(os.Environ(), "GOGC=50")
	cmd.Stderr = log
	cmd.ExtraFiles = []*os.File{theirs, lock.File()}
	if first != nil {
		cmd.Args = append(cmd.Args, monitor.WithFirst)
		cmd.ExtraFiles = append(cmd.ExtraFiles, first)
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = cmd.Start()
	theirs.Close()
	log.Close()
	if err != nil {
		return fmt.Errorf("start monitor: %w", err)
	}
	fault.Here("launch: monitor started")
	return s.await(ctx, r, cmd, report)
}

const (
	// stopAfterCancel is how long a monitor that is told to give up may take.
	stopAfterCancel = 15 * time.Second
	// reportTime is how long a monitor may take besides the time that the guest
	// has to come up.
	reportTime = time.Minute
)

// await waits for the monitor's report. If ctx ends first, or the report is
// late, the monitor is told to take everything back.
func (s *Service) await(ctx context.Context, r *store.Record, cmd *exec.Cmd, report *os.File) error {
	reported := make(chan error, 1)
	go func() { reported <- monitor.ReadReport(report) }()
	limit := time.NewTimer(r.Spec.BootTimeout + reportTime)
	defer limit.Stop()
	var late error
	select {
	case err := <-reported:
		return begun(cmd, err)
	case <-ctx.Done():
		late = context.Cause(ctx)
	case <-limit.C:
		select {
		case err := <-reported: // while we were stopped ourselves
			return begun(cmd, err)
		default:
		}
		late = api.Errorf(api.ErrVMBoot, "the monitor of %s did not report in time and was ended", r.ID).WithVM(r.ID).
			WithHint("vmsan doctor")
	}
	cmd.Process.Signal(syscall.SIGTERM)
	awaitExit(cmd)
	return late
}

// begun deals with a monitor that has reported err.
func begun(cmd *exec.Cmd, err error) error {
	if err != nil {
		awaitExit(cmd)
		return err
	}
	// A program that lives longer than the sandbox would keep a zombie of it.
	go cmd.Wait()
	return nil
}

// awaitExit waits for the end of a monitor that ends, and kills it if it hangs.
func awaitExit(cmd *exec.Cmd) {
	ended := make(chan struct{})
	go func() {
		cmd.Wait()
		close(ended)
	}()
	select {
	case <-ended:
	case <-time.After(stopAfterCancel):
		cmd.Process.Kill()
		<-ended
	}
}
