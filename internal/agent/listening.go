package agent

import (
	"bufio"
	"cmp"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// listening is a socket of the guest's that takes connections or packets.
type listening struct {
	Protocol string     `json:"protocol"` // "tcp" or "udp"
	Address  netip.Addr `json:"address"`
	Port     uint16     `json:"port"`
	// PID and Process are those of one that has it, if that is known.
	PID     int    `json:"pid,omitempty"`
	Process string `json:"process,omitempty"`

	inode uint64
}

// servePorts tells what listens in the guest:
//
//	GET /vmsan/ports
func (a *Agent) servePorts(w http.ResponseWriter, _ *http.Request) {
	found, err := findListening("/proc")
	if err != nil {
		writeHTTPError(w, err)
		return
	}
	writeJSON(w, http.StatusOK, found)
}

// The states of sockets that listen, as the kernel's tables have them: TCP_LISTEN, and for UDP, of which
// none listens, TCP_CLOSE, which is that it is connected to nobody.
const (
	tcpListens = "0A"
	udpListens = "07"
)

// findListening reads the kernel's tables of sockets. Those of the older form are read rather than
// sock_diag(7)'s, for which a kernel may lack the module.
func findListening(proc string) ([]listening, error) {
	all := []listening{}
	for _, table := range []struct{ name, protocol, state string }{
		{"tcp", "tcp", tcpListens}, {"tcp6", "tcp", tcpListens}, {"udp", "udp", udpListens}, {"udp6", "udp", udpListens},
	} {
		file, err := os.Open(filepath.Join(proc, "net", table.name))
		if errors.Is(err, fs.ErrNotExist) {
			continue // a kernel without IPv6
		}
		if err != nil {
			return nil, fmt.Errorf("read sockets: %w", err)
		}
		all, err = readSockets(file, all, table.protocol, table.state)
		file.Close()
		if err != nil {
			return nil, fmt.Errorf("read %s: %w", file.Name(), err)
		}
	}
	findOwners(proc, all)
	slices.SortFunc(all, func(a, b listening) int {
		return cmp.Or(strings.Compare(a.Protocol, b.Protocol), cmp.Compare(a.Port, b.Port), a.Address.Compare(b.Address))
	})
	return all, nil
}

// readSockets adds those of one of the tables of proc(5) that are in a state. Its lines are
//
//	sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
//	 0: 0100007F:1F40 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4711 ...
func readSockets(r io.Reader, all []listening, protocol, state string) ([]listening, error) {
	lines := bufio.NewScanner(r)
	lines.Scan() // what the columns are called
	for lines.Scan() && len(all) < maxListening {
		fields := strings.Fields(lines.Text())
		if len(fields) < 10 || fields[3] != state {
			continue
		}
		at, ok := parseSocketAddress(fields[1])
		if !ok {
			continue
		}
		inode, err := strconv.ParseUint(fields[9], 10, 64)
		if err != nil {
			continue
		}
		all = append(all, listening{Protocol: protocol, Address: at.Addr(), Port: at.Port(), inode: inode})
	}
	return all, lines.Err()
}

// parseSocketAddress reads an address in words of the machine's byte order, and a port: "0100007F:1F40".
func parseSocketAddress(text string) (at netip.AddrPort, ok bool) {
	digits, port, _ := strings.Cut(text, ":")
	raw, err := hex.DecodeString(digits)
	if err != nil || len(raw)%4 != 0 {
		return at, false
	}
	for word := range slices.Chunk(raw, 4) {
		binary.NativeEndian.PutUint32(word, binary.BigEndian.Uint32(word))
	}
	address, ok := netip.AddrFromSlice(raw)
	n, err := strconv.ParseUint(port, 16, 16)
	return netip.AddrPortFrom(address, uint16(n)), ok && err == nil
}

// findOwners fills in the processes. What ends meanwhile is passed over.
func findOwners(proc string, all []listening) {
	left := map[string][]*listening{}
	for i := range all {
		socket := fmt.Sprintf("socket:[%d]", all[i].inode)
		left[socket] = append(left[socket], &all[i])
	}
	pids, _ := processIDs(proc)
	for _, pid := range pids {
		if len(left) == 0 {
			return
		}
		dir := filepath.Join(proc, strconv.Itoa(pid))
		files, _ := os.ReadDir(filepath.Join(dir, "fd"))
		for _, file := range files {
			target, err := os.Readlink(filepath.Join(dir, "fd", file.Name()))
			if err != nil || left[target] == nil {
				continue
			}
			name, _ := os.ReadFile(filepath.Join(dir, "comm"))
			for _, l := range left[target] {
				l.PID, l.Process = pid, strings.TrimSuffix(string(name), "\n")
			}
			delete(left, target)
		}
	}
}

// processIDs are those of all processes, in order.
func processIDs(proc string) (pids []int, err error) {
	dir, err := os.Open(proc)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	for _, name := range names {
		if pid, err := strconv.Atoi(name); err == nil && pid > 0 {
			pids = append(pids, pid)
		}
	}
	slices.Sort(pids)
	return pids, err
}
