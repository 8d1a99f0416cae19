package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"unicode"

	"connectrpc.com/connect"

	"github.com/vmsan/vmsan/api"
	"github.com/vmsan/vmsan/internal/guest"
	"github.com/vmsan/vmsan/internal/guest/proto/process"
	"github.com/vmsan/vmsan/internal/guest/proto/process/processconnect"
)

// escapes move a terminal's cursor, rename it, and clear it.
const escapes = "\x1b[2J\x1b]0;renamed\x07\u009b31m\r\n\u202e\x7f\U000e0001"

// boaster is a guest whose processes have names that are no names.
type boaster struct {
	processconnect.UnimplementedProcessHandler
}

func (boaster) List(context.Context, *connect.Request[process.ListRequest]) (*connect.Response[process.ListResponse], error) {
	evil := escapes
	return connect.NewResponse(&process.ListResponse{Processes: []*process.ProcessInfo{{
		Pid:    7,
		Config: &process.ProcessConfig{Cmd: "cmd" + evil, Args: []string{evil}, Cwd: &evil, User: &evil},
	}}}), nil
}

// What a guest calls its commands and users does nothing to a terminal.
func TestProcessesOfAHostileGuest(t *testing.T) {
	mux := http.NewServeMux()
	mux.Handle(processconnect.NewProcessHandler(boaster{}))
	server := httptest.NewServer(mux)
	defer server.Close()
	client := guest.New(func(ctx context.Context) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "tcp", server.Listener.Addr().String())
	})
	defer client.Close()
	var out bytes.Buffer
	a := &app{stdout: &out, stderr: &out}
	a.json = true
	if err := a.runPs(t.Context(), client); err != nil {
		t.Fatal(err)
	}
	if strings.ContainsFunc(out.String(), func(r rune) bool { return r != '\n' && !unicode.IsPrint(r) }) {
		t.Errorf("as JSON: %q", out.String())
	}
	var listed []api.Process
	if err := json.Unmarshal(out.Bytes(), &listed); err != nil || len(listed) != 1 || listed[0].User != escapes {
		t.Errorf("as JSON: %v, %+v", err, listed)
	}
	a.json = false
	out.Reset()
	if err := a.runPs(t.Context(), client); err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSuffix(out.String(), "\n"), "\n")
	if len(lines) != 2 || !strings.HasPrefix(lines[1], "7 ") {
		t.Fatalf("got %q", out.String())
	}
	if strings.ContainsFunc(lines[1], func(r rune) bool { return !unicode.IsPrint(r) }) {
		t.Errorf("got %q", lines[1])
	}
}
