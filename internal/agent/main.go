package agent

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/vmsan/vmsan/internal/guest/proto/process"
	"github.com/vmsan/vmsan/internal/link"
)

// mainProcess is what a sandbox was made to run. What it says goes to the
// console, and when it ends for good so does the guest.
type mainProcess struct {
	mu       sync.Mutex
	order    link.Main
	running  *running
	stopping bool
}

// console is where the host reads what the main process says.
const console = "/dev/console"

// mainTag is the tag of the main process among the commands.
const mainTag = "main"

// startMain starts the main process. In a copy of a guest it runs already.
func (a *Agent) startMain(order link.Main) error {
	a.main.mu.Lock()
	defer a.main.mu.Unlock()
	if a.main.running != nil {
		return nil
	}
	out, err := os.OpenFile(console, os.O_WRONLY|syscall.O_NOCTTY, 0)
	if err != nil {
		return err
	}
	r, err := a.launchMain(order.Args)
	if err != nil {
		out.Close()
		return fmt.Errorf("start %s: %w", order.Args[0], err)
	}
	a.main.order, a.main.running = order, r
	go a.attendMain(out)
	return nil
}

func (a *Agent) launchMain(args []string) (*running, error) {
	tag, stdin := mainTag, false
	c, err := a.resolveCommand(context.Background(), &process.StartRequest{
		Process: &process.ProcessConfig{Cmd: args[0], Args: args[1:]}, Tag: &tag, Stdin: &stdin,
	}, http.Header{})
	if err != nil {
		return nil, err
	}
	return a.startCommand(c)
}

// attendMain sees the main process to its end, as often as it is started.
func (a *Agent) attendMain(out *os.File) {
	defer out.Close()
	pause := restartPause{shortest: 100 * time.Millisecond, longest: time.Minute}
	r := a.main.running
	for failures := 0; ; {
		began := time.Now()
		// That the console cannot be written to is nothing to tell anybody.
		_ = r.starter.follow(context.Background(), func(_ source, c chunk) error {
			_, err := out.Write(c.data())
			return err
		})
		<-r.ended
		fmt.Fprintf(out, "\nvmsan: the main process ended: %s\n", r.end.GetStatus())
		if r.end.GetExitCode() != 0 {
			failures++
		}
		if !a.main.order.Again(int(r.end.GetExitCode()), failures) {
			break
		}
		time.Sleep(pause.next(time.Since(began)))
		var err error
		if r, err = a.relaunchMain(); err != nil {
			fmt.Fprintf(out, "vmsan: the main process cannot be started again: %v\n", err)
			break
		}
		if r == nil {
			return // the guest is being shut down
		}
	}
	if a.config.PowerOff != nil {
		if err := a.config.PowerOff(context.Background(), false); err != nil {
			a.config.Logger.Error("shut down after main process", "error", err)
		}
	}
}

func (a *Agent) relaunchMain() (*running, error) {
	a.main.mu.Lock()
	defer a.main.mu.Unlock()
	if a.main.stopping {
		return nil, nil
	}
	r, err := a.launchMain(a.main.order.Args)
	if err == nil {
		a.main.running = r
	}
	return r, err
}

const (
	// hostGrace is the host's default.
	hostGrace = 10 * time.Second
	// syncGrace is for writing to the disks what was not written yet.
	syncGrace = 2 * time.Second
)

// mainGrace is how long a main process has to end, of the time that the host
// waits for the guest: what the other processes and the disks leave of it.
func mainGrace(whole time.Duration) time.Duration {
	if whole == 0 {
		whole = hostGrace
	}
	return max(whole-endGrace-syncGrace, 0)
}

// stopMain asks the main process to end, by the signal that it wants, and
// waits for that.
func (a *Agent) stopMain(grace time.Duration) {
	a.main.mu.Lock()
	r, number := a.main.running, a.main.order.StopSignal
	a.main.stopping = true
	a.main.mu.Unlock()
	if r == nil || number == 0 {
		return // what ends all processes ends it
	}
	if err := r.signal(syscall.Signal(number), false); err != nil {
		return
	}
	select {
	case <-r.ended:
	case <-time.After(grace):
	}
}

// restartPause is the time until a process is started again, which grows
// while it ends quickly.
type restartPause struct{ shortest, longest, last time.Duration }

func (p *restartPause) next(lived time.Duration) time.Duration {
	if lived > p.longest {
		p.last = 0
	}
	p.last = min(max(2*p.last, p.shortest), p.longest)
	return p.last
}
