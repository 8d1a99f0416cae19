package link

import (
	"bytes"
	"encoding/binary"
	"io"
	"net"
	"testing"
	"time"
)

// lyingGuest waits for the host's nonce, repeats it as a good guest does, and
// goes on with said on the data port.
func lyingGuest(t *testing.T, control, data net.Conn, said []byte) {
	t.Helper()
	go readMessages(control, maxHostLine, func(m message) bool {
		n, ok := m.reset()
		if !ok {
			return true
		}
		data.Write(n[:])
		io.ReadFull(data, make([]byte, nonceSize))
		data.Write(said)
		go io.Copy(io.Discard, data)
		return true
	})
}

// frame is a yamux header (spec.md, "Framing").
func frame(version, kind byte, flags uint16, stream, length uint32) []byte {
	header := []byte{version, kind}
	header = binary.BigEndian.AppendUint16(header, flags)
	header = binary.BigEndian.AppendUint32(header, stream)
	return binary.BigEndian.AppendUint32(header, length)
}

// Whatever a guest says on the data port, the host is not held up, and learns
// that there is nothing to be had from this guest.
func TestGuestThatLies(t *testing.T) {
	const syn, fin, rst = 1, 4, 8
	for name, said := range map[string][]byte{
		"text":                       bytes.Repeat([]byte("not a frame "), 1000),
		"another version":            frame(7, 0, 0, 0, 0),
		"an unknown type":            frame(0, 9, 0, 1, 0),
		"data for no stream":         append(frame(0, 0, 0, 77, 4), 1, 2, 3, 4),
		"endless data for no stream": frame(0, 0, 0, 77, 1<<32-1),
		"more data than the window":  frame(0, 0, syn, 2, 1<<31),
		"an end of nothing":          frame(0, 1, fin|rst, 99, 0),
		"goodbye":                    frame(0, 3, 0, 0, 1),
	} {
		t.Run(name, func(t *testing.T) {
			control, data := newWire(t), newWire(t)
			lyingGuest(t, control.guest, data.guest, said)
			host, err := Connect(t.Context(), control.open(t), data.open(t), nil)
			if err != nil {
				return // it did not even begin
			}
			stream, err := host.Dial(t.Context())
			if err == nil {
				stream.SetDeadline(time.Now().Add(100 * time.Millisecond))
				_, err = stream.Read(make([]byte, 1))
			}
			if err == nil {
				t.Error("something was read from a guest that said nothing")
			}
			ended := make(chan struct{})
			go func() {
				host.Close()
				<-host.Closed()
				close(ended)
			}()
			select {
			case <-ended:
			case <-time.After(time.Minute):
				t.Error("the session does not end")
			}
		})
	}
}

// A guest that opens streams nobody asked for gets no more than the backlog,
// and the host goes on.
func TestGuestThatOpensStreams(t *testing.T) {
	const syn = 1
	var said bytes.Buffer
	for stream := range uint32(10 * backlog) {
		said.Write(frame(0, 1, syn, 2+2*stream, 0))
	}
	control, data := newWire(t), newWire(t)
	lyingGuest(t, control.guest, data.guest, said.Bytes())
	host, err := Connect(t.Context(), control.open(t), data.open(t), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer host.Close()
	time.Sleep(100 * time.Millisecond)
	if got := host.session.NumStreams(); got > backlog+1 {
		t.Errorf("%d streams are held for the guest, more than %d", got, backlog)
	}
}

// Talk on the control port, however much, is read and forgotten.
func TestTalkativeControlPort(t *testing.T) {
	control, data := newWire(t), newWire(t)
	echoGuest(t, control.guest, data.guest)
	host, err := Connect(t.Context(), control.open(t), data.open(t), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer host.Close()
	line := append(bytes.Repeat([]byte("x"), 100), '\n')
	if _, err := control.guest.Write(bytes.Repeat(line, 10_000)); err != nil {
		t.Fatal(err)
	}
	echo(t, host, "still here")
}
