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

func frame(kind byte, stream, length uint32) []byte {
	header := binary.BigEndian.AppendUint32([]byte{kind}, stream)
	return binary.BigEndian.AppendUint32(header, length)
}

// Whatever a guest says on the data port, the host is not held up, and learns
// that there is nothing to be had from this guest.
func TestGuestThatLies(t *testing.T) {
	for name, said := range map[string][]byte{
		"text":                       bytes.Repeat([]byte("not a frame "), 1000),
		"an unknown kind":            frame(99, 1, 0),
		"a stream of its own":        append(frame(frameOpen, 2, 4), 1, 2, 3, 4),
		"the host's stream":          append(frame(frameOpen, 1, 4), 1, 2, 3, 4),
		"data for no stream":         append(frame(frameData, 77, 4), 1, 2, 3, 4),
		"endless data for no stream": frame(frameData, 77, 1<<32-1),
		"more data than the window":  frame(frameData, 1, window+1),
		"more room than the window":  frame(frameRoom, 1, 1),
		"an end of nothing":          frame(frameEnd, 99, 0),
		"an end":                     frame(frameEnd, 1, 0),
		"goodbye":                    frame(frameGone, 1, 0),
		"data after the end":         append(frame(frameEnd, 1, 0), append(frame(frameData, 1, 1), 1)...),
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
	if _, err := control.guest.Write(bytes.Repeat([]byte("one line without an end "), 10_000)); err != nil {
		t.Fatal(err)
	}
	echo(t, host, "still here")
	// The end of such a line is still heard.
	if _, err := control.guest.Write([]byte("\n" + verbTimed + " \n")); err != nil {
		t.Fatal(err)
	}
	select {
	case <-host.watch.timed:
	case <-time.After(time.Minute):
		t.Error("nothing is heard any more")
	}
}
