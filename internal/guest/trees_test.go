package guest

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/vmsan/vmsan/api"
	"github.com/vmsan/vmsan/internal/filetree"
)

// newBadGuest is a client of a guest that answers as handle does.
func newBadGuest(t *testing.T, handle http.HandlerFunc) *Client {
	t.Helper()
	server := httptest.NewServer(handle)
	t.Cleanup(server.Close)
	c := New(func(ctx context.Context) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "tcp", server.Listener.Addr().String())
	})
	t.Cleanup(c.Close)
	return c
}

// What a guest says of a tree that it cannot send is heard, also in the
// middle of it, and so is a stream that is cut.
func TestReadTreeFails(t *testing.T) {
	for name, test := range map[string]struct {
		answer http.HandlerFunc
		want   api.Code
	}{
		"missing": {func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusNotFound)
			io.WriteString(w, `{"code": 404, "message": "no such\u001b[2J thing"}`)
		}, api.ErrFileNotFound},
		"no reason": {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusTeapot) }, api.ErrGuest},
		"an endless reason": {func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusInternalServerError)
			for range 1000 {
				io.WriteString(w, strings.Repeat("x", 10<<10))
			}
		}, api.ErrGuest},
		"in the middle": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Trailer", "Vmsan-Error")
			io.WriteString(w, "half")
			w.Header().Set("Vmsan-Error", "the disk broke")
		}, api.ErrGuest},
		"cut": {func(w http.ResponseWriter, _ *http.Request) {
			io.WriteString(w, "half")
			w.(http.Flusher).Flush()
			panic(http.ErrAbortHandler)
		}, api.ErrGuestLink},
	} {
		r, err := newBadGuest(t, test.answer).ReadTree(t.Context(), "/x", "x", nil)
		if err == nil {
			_, err = io.Copy(io.Discard, r)
			r.Close()
		}
		if !api.HasCode(err, test.want) || strings.Contains(err.Error(), "\x1b") || len(err.Error()) > 20<<10 {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestWriteTreeFails(t *testing.T) {
	for name, answer := range map[string]http.HandlerFunc{
		"nonsense": func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "{") },
		"early":    func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusInsufficientStorage) },
		"after half": func(w http.ResponseWriter, r *http.Request) {
			io.CopyN(io.Discard, r.Body, 10)
			w.WriteHeader(http.StatusBadRequest)
		},
	} {
		_, err := newBadGuest(t, answer).WriteTree(t.Context(), "/", strings.NewReader(strings.Repeat("x", 1<<20)), WriteTreeOptions{})
		if !api.HasCode(err, api.ErrGuest) && !api.HasCode(err, api.ErrGuestLink) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A listing that is cut, or is none, or has no end, is not taken for one.
func TestListTreeFails(t *testing.T) {
	record := []byte{9, 0, 0, 0, 0, 1, 'a', 0, 0, 0} // its length is wrong
	for name, test := range map[string]struct {
		answer http.HandlerFunc
		want   api.Code
	}{
		"missing":   {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNotFound) }, api.ErrFileNotFound},
		"nonsense":  {func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "nonsense\x1b[2J") }, api.ErrGuest},
		"empty":     {func(http.ResponseWriter, *http.Request) {}, api.ErrGuest},
		"malformed": {func(w http.ResponseWriter, _ *http.Request) { w.Write(record) }, api.ErrGuest},
		"in the middle": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Trailer", "Vmsan-Error")
			w.Write(record[:1])
			w.Header().Set("Vmsan-Error", "the disk broke")
		}, api.ErrGuest},
		"endless": {func(w http.ResponseWriter, _ *http.Request) {
			out := bufio.NewWriter(w)
			for i := 0; ; i++ {
				if filetree.WriteEntry(out, filetree.Entry{Name: strings.Repeat("x", 4000) + fmt.Sprint(i)}) != nil {
					return
				}
			}
		}, api.ErrGuest},
	} {
		var entries filetree.Entries
		err := newBadGuest(t, test.answer).ListTree(t.Context(), "/x", filetree.ListOptions{Name: "x"}, entries.Add)
		if !api.HasCode(err, test.want) || strings.Contains(err.Error(), "\x1b") || len(err.Error()) > 20<<10 {
			t.Errorf("%s: %v", name, err)
		}
	}
}
