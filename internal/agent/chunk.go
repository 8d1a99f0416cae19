package agent

import (
	"context"
	"encoding/binary"
	"net/http"
	"sync"

	"google.golang.org/protobuf/encoding/protowire"
)

// chunk is a piece of output in a buffer with room before it for all that frames it on the wire, so that
// between the pipe and the link no byte is moved.
type chunk struct {
	buffer []byte // headroom, then n bytes, then what is free
	n      int
}

// headroom is more than an envelope of 5 bytes and three nested fields of up to 5 need.
const headroom = 32

// chunks are buffers for headroom and chunkSize.
var chunks = sync.Pool{New: func() any {
	buffer := make([]byte, headroom+chunkSize)
	return &buffer
}}

// newChunk copies data.
func newChunk(data []byte) chunk {
	buffer := make([]byte, headroom+len(data))
	copy(buffer[headroom:], data)
	return chunk{buffer: buffer, n: len(data)}
}

// data is the output itself.
func (c chunk) data() []byte {
	return c.buffer[headroom : headroom+c.n]
}

// Field numbers of process.proto: event of StartResponse and of ConnectResponse, and data of ProcessEvent.
// The numbers of DataEvent are the values of source.
const (
	eventField = 1
	dataField  = 2
)

// framed returns the envelope of a Connect stream with the event in binary, as StartResponse and
// ConnectResponse have it alike. It writes to the headroom.
func (c chunk) framed(from source) []byte {
	end := headroom + c.n
	start := headroom
	for _, field := range [...]int{int(from), dataField, eventField} {
		start = putField(c.buffer, start, field, end-start)
	}
	const envelope = 5 // flags, of which there are none, and the length
	length := end - start
	start -= envelope
	c.buffer[start] = 0
	binary.BigEndian.PutUint32(c.buffer[start+1:], uint32(length))
	return c.buffer[start:end]
}

// putField puts what stands before length bytes of a field in front of start, and returns where it begins.
func putField(buffer []byte, start, number, length int) int {
	var head [2 * binary.MaxVarintLen32]byte
	field := protowire.AppendTag(head[:0], protowire.Number(number), protowire.BytesType)
	field = protowire.AppendVarint(field, uint64(length))
	return start - copy(buffer[start-len(field):], field)
}

// rawStream is the answer to a Connect stream in binary, under Connect's hands. Frames may be written to it
// between two Sends: a Send leaves nothing behind.
type rawStream struct {
	writer  http.ResponseWriter
	flusher *http.ResponseController
}

func (r *rawStream) write(frame []byte) error {
	if _, err := r.writer.Write(frame); err != nil {
		return err
	}
	return r.flusher.Flush()
}

type rawStreamKey struct{}

// exposeStreams lets handlers of streams in binary write output as it is.
func exposeStreams(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Content-Type") == "application/connect+proto" {
			raw := &rawStream{writer: w, flusher: http.NewResponseController(w)}
			r = r.WithContext(context.WithValue(r.Context(), rawStreamKey{}, raw))
		}
		next.ServeHTTP(w, r)
	})
}
