// Command badguest is an init that does not do what an agent does. Its one
// mode is set when it is built.
package main

import (
	"bufio"
	"fmt"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

var mode string

func main() {
	console, err := prepare()
	if err != nil {
		panic(err)
	}
	fmt.Fprintf(console, "badguest is %s\n", mode)
	switch mode {
	case "silent":
	case "gone": // and with it the kernel
		return
	case "babbling":
		for _, port := range ports() {
			go babble(port)
		}
	case "liar": // takes the host's word, repeats it, and goes on with nonsense
		lie(ports())
	}
	for {
		time.Sleep(time.Hour)
	}
}

// prepare loads the modules of the initramfs and opens the console.
func prepare() (*os.File, error) {
	for target, kind := range map[string]string{"/dev": "devtmpfs", "/proc": "proc", "/sys": "sysfs"} {
		if err := os.MkdirAll(target, 0o755); err != nil {
			return nil, err
		}
		if err := unix.Mount(kind, target, kind, 0, ""); err != nil && err != unix.EBUSY {
			return nil, err
		}
	}
	list, err := os.ReadFile("/modules/load.txt")
	if err != nil {
		return nil, err
	}
	for _, path := range strings.Fields(string(list)) {
		module, err := os.Open(path)
		if err != nil {
			return nil, err
		}
		if err := unix.FinitModule(int(module.Fd()), "", 0); err != nil && err != unix.EEXIST {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
	}
	return os.OpenFile("/dev/console", os.O_WRONLY, 0)
}

// ports opens the control and the data port, in this order.
func ports() []*os.File {
	var open []*os.File
	for _, name := range []string{"/dev/vport0p1", "/dev/vport0p2"} {
		for {
			file, err := os.OpenFile(name, os.O_RDWR, 0)
			if err == nil {
				open = append(open, file)
				break
			}
			time.Sleep(10 * time.Millisecond)
		}
	}
	return open
}

// patient reads on when a port reads as ended: the host is not there yet.
type patient struct{ *os.File }

func (p patient) Read(b []byte) (int, error) {
	for {
		if n, _ := p.File.Read(b); n > 0 {
			return n, nil
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func babble(port *os.File) {
	random, err := os.Open("/dev/urandom")
	if err != nil {
		panic(err)
	}
	for {
		bufio.NewWriterSize(port, 4096).ReadFrom(random)
	}
}

// lie reads "reset NONCE" from the control port, among other lines, of which
// those with the time have to be answered first.
func lie(ports []*os.File) {
	lines := bufio.NewScanner(patient{ports[0]})
	lines.Buffer(nil, 1<<20)
	nonce := make([]byte, 32)
	for lines.Scan() {
		if verb, now, _ := strings.Cut(lines.Text(), " "); verb == "time" || verb == "advance" {
			fmt.Fprintf(ports[0], "timed %s\n", now)
		}
		if digits, ok := strings.CutPrefix(lines.Text(), "reset "); ok {
			fmt.Sscanf(digits, "%x", &nonce)
			break
		}
	}
	ports[1].Write(nonce)
	babble(ports[1])
}
