package attack

import (
	"fmt"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmsan/vmsan/internal/link"
)

// An image with this program as its init has a file that says what it lies
// about, and begins when there is another one.
const (
	LieFile   = "/lie"
	BeginFile = "/begin"

	// Sessions lies in the frames of the link, one session after the other in
	// another way, Answers in what the agent says to requests.
	Sessions = "sessions"
	Answers  = "answers"
)

// Lie is an init that takes the place of the agent beside it.
func Lie() error {
	about, err := os.ReadFile(LieFile)
	if err != nil {
		return err
	}
	for {
		if _, err := os.Stat(BeginFile); err == nil {
			break
		}
		time.Sleep(50 * time.Millisecond)
	}
	// All but ourselves: what asked for it has a moment to end.
	time.Sleep(200 * time.Millisecond)
	if err := unix.Kill(-1, unix.SIGKILL); err != nil {
		return err
	}
	control, err := openFreed(link.ControlPort)
	if err != nil {
		return err
	}
	data, err := openFreed(link.DataPort)
	if err != nil {
		return err
	}
	console, err := os.OpenFile(consolePath, os.O_WRONLY|unix.O_NOCTTY, 0)
	if err != nil {
		return err
	}
	fmt.Fprintln(console, "the liar has the ports")
	if strings.TrimSpace(string(about)) == Sessions {
		lieInSessions(control, data, console)
	} else {
		lieInAnswers(control, data)
	}
	select {} // an init that ends is the guest's end
}

// openFreed opens a port once nobody else has it.
func openFreed(name string) (*os.File, error) {
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
		device, err := portDevice(name)
		var port *os.File
		if err == nil {
			port, err = os.OpenFile(device, os.O_RDWR, 0)
		}
		if err == nil || time.Now().After(deadline) {
			return port, err
		}
	}
}
