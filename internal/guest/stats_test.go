package guest

import (
	"io"
	"net/http"
	"strings"
	"testing"
	"unicode"

	"github.com/vmsan/vmsan/api"
)

const portsAnswer = `[{"protocol": "tcp", "address": "127.0.0.1", "port": 80, "pid": 7, "process": "a\u001b[2Jb"}, {"protocol": "udp", "address": "::", "port": 53}]`

// A guest that answers nonsense, too much or what cannot be gets an error that
// can be shown.
func TestPlainCallsFail(t *testing.T) {
	machine := Machine{Memory: 1 << 20, Disk: 1 << 20}
	for name, answer := range map[string]string{
		"nonsense":           "{[",
		"the wrong type":     `"text"`,
		"too much":           strings.Repeat(" ", maxMessage+1),
		"too many":           "[" + strings.Repeat(`{"protocol": "tcp", "address": "::"},`, maxListening) + `{"protocol": "tcp", "address": "::"}]`,
		"no protocol":        `[{"protocol": "\u001b[2J", "address": "::"}]`,
		"no address":         `[{"protocol": "tcp"}]`,
		"a zone":             `[{"protocol": "tcp", "address": "fe80::1%\u001b[2J"}]`,
		"a port too large":   `[{"protocol": "tcp", "address": "::", "port": 65536}]`,
		"a process too many": `[{"protocol": "tcp", "address": "::", "pid": 4194305}]`,
	} {
		c := newBadGuest(t, func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, answer) })
		if _, err := c.Ports(t.Context()); !api.HasCode(err, api.ErrGuest) || strings.Contains(err.Error(), "\x1b") {
			t.Errorf("ports: %s: %v", name, err)
		}
	}
	for name, answer := range map[string]string{
		"nonsense":         "[",
		"too much memory":  `{"mem_total": 1048577}`,
		"more than all":    `{"mem_total": 10, "mem_used": 11}`,
		"less than none":   `{"mem_total": -1, "mem_used": -1}`,
		"too large a disk": `{"disk_total": 1048577}`,
		"more than full":   `{"disk_total": 10, "disk_used": 11}`,
		"no number":        `{"processes": 1e999}`,
		"too many":         `{"processes": 4194305}`,
		"fewer than none":  `{"processes": -1}`,
	} {
		c := newBadGuest(t, func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, answer) })
		if _, err := c.Stats(t.Context(), machine); !api.HasCode(err, api.ErrGuest) {
			t.Errorf("stats: %s: %v", name, err)
		}
	}
	refuses := newBadGuest(t, func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "no\x1b[2J", http.StatusTeapot) })
	if _, err := refuses.Ports(t.Context()); !api.HasCode(err, api.ErrGuest) || strings.Contains(err.Error(), "\x1b") {
		t.Errorf("a refusal: %v", err)
	}
}

func TestPorts(t *testing.T) {
	list, err := parsePorts([]byte(portsAnswer))
	if err != nil || len(list) != 2 || list[0].Process != "a?[2Jb" || list[0].At.String() != "127.0.0.1:80" || list[1].At.String() != "[::]:53" {
		t.Errorf("%+v, %v", list, err)
	}
}

func FuzzPorts(f *testing.F) {
	f.Add([]byte(portsAnswer))
	f.Fuzz(func(t *testing.T, body []byte) {
		list, err := parsePorts(body)
		if err == nil && len(list) > maxListening {
			t.Errorf("%d ports", len(list))
		}
		for _, l := range list {
			if strings.ContainsFunc(l.Process+l.At.String(), func(r rune) bool { return !unicode.IsPrint(r) }) {
				t.Errorf("%+v can move a cursor", l)
			}
		}
	})
}

func FuzzStats(f *testing.F) {
	f.Add([]byte(`{"mem_total": 1000, "mem_used": 500, "disk_total": 1000, "disk_used": 1, "processes": 3}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		s, err := parseStats(body, Machine{Memory: 1 << 20, Disk: 1 << 20})
		if err == nil && (s.MemoryUsed > s.MemoryTotal || s.MemoryTotal > 1<<20 || s.DiskUsed > s.DiskTotal || s.DiskTotal > 1<<20 || min(s.MemoryUsed, s.DiskUsed) < 0) {
			t.Errorf("%+v", s)
		}
	})
}
