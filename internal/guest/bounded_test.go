package guest

import (
	"context"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"
)

// An answer without an end is not read without an end.
func TestAnswersWithoutEnd(t *testing.T) {
	for name, status := range map[string]int{"answer": http.StatusOK, "error": http.StatusInternalServerError} {
		t.Run(name, func(t *testing.T) {
			written := make(chan int, 1)
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Content-Type", "application/proto")
				if status != http.StatusOK {
					w.Header().Set("Content-Type", "application/json")
				}
				w.WriteHeader(status)
				sum := 0
				for {
					n, err := w.Write(make([]byte, 64<<10))
					sum += n
					if err != nil {
						written <- sum
						return
					}
				}
			}))
			defer server.Close()
			client := New(func(ctx context.Context) (net.Conn, error) {
				return new(net.Dialer).DialContext(ctx, "tcp", server.Listener.Addr().String())
			})
			defer client.Close()
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			if _, err := client.Processes(ctx); err == nil || ctx.Err() != nil {
				t.Errorf("got %v, %v", err, ctx.Err())
			}
			const buffers = 16 << 20 // of sockets
			if sum := <-written; sum > 2*maxMessage+buffers {
				t.Errorf("%d bytes were read", sum)
			}
		})
	}
}
