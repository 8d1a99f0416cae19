package agent

import (
	"bytes"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/vmsan/vmsan/internal/guest/proto/process"
)

// Frames written by hand must be what the generated code reads, and writes.
func TestFramed(t *testing.T) {
	for _, size := range []int{1, 100, 127, 128, 16383, 16384, chunkSize} {
		data := bytes.Repeat([]byte{0xa5}, size)
		for from, event := range map[source]*process.ProcessEvent_DataEvent{
			stdout:   {Output: &process.ProcessEvent_DataEvent_Stdout{Stdout: data}},
			stderr:   {Output: &process.ProcessEvent_DataEvent_Stderr{Stderr: data}},
			terminal: {Output: &process.ProcessEvent_DataEvent_Pty{Pty: data}},
		} {
			want, err := proto.Marshal(&process.StartResponse{Event: &process.ProcessEvent{Event: &process.ProcessEvent_Data{Data: event}}})
			if err != nil {
				t.Fatal(err)
			}
			if got := newChunk(data).framed(from); !bytes.Equal(got, envelope(string(want))) {
				t.Errorf("%d bytes from %d: got %x..., want %x...", size, from, got[:min(len(got), 20)], want[:min(len(want), 15)])
			}
		}
	}
}
