package proxy

import (
	"bytes"
	"io"
	"net"
	"slices"

	"github.com/vmsan/vmsan/internal/gate/sockets"
)

// refusal is why something is not passed on, as the network log has it.
type refusal string

func (r refusal) Error() string { return string(r) }

// The refusals of what cannot be read for certain.
const (
	errLong     refusal = "too long"
	errLineEnds refusal = "malformed line end"
)

// ahead reads a connection ahead of what is passed on from it.
type ahead struct {
	net.Conn
	buffer []byte // read and not passed on
}

// readSize is how much is asked for at once, in bytes: what is not read here
// is passed on by the kernel.
const readSize = 4 << 10

// more reads on, unless there are most bytes already.
func (a *ahead) more(most int) error {
	if len(a.buffer) >= most {
		return errLong
	}
	a.buffer = slices.Grow(a.buffer, min(readSize, most-len(a.buffer)))
	room := a.buffer[len(a.buffer):cap(a.buffer)]
	n, err := a.Conn.Read(room[:min(len(room), most-len(a.buffer))])
	a.buffer = a.buffer[:len(a.buffer)+n]
	if n > 0 {
		return nil
	}
	return err
}

// need reads on until there are n bytes.
func (a *ahead) need(n int) error {
	for len(a.buffer) < n {
		if err := a.more(n + readSize); err != nil {
			return unexpected(err)
		}
	}
	return nil
}

func unexpected(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

// line returns the line at offset, with its CRLF. There must be no CR or LF
// but at its end.
func (a *ahead) line(offset, most int) ([]byte, error) {
	for scanned := offset; ; {
		if i := bytes.IndexByte(a.buffer[min(scanned, len(a.buffer)):], '\n'); i >= 0 {
			line := a.buffer[offset : scanned+i+1]
			if len(line) < 2 || bytes.IndexByte(line, '\r') != len(line)-2 {
				return nil, errLineEnds
			}
			return line, nil
		}
		scanned = max(offset, len(a.buffer))
		if err := a.more(offset + most); err != nil {
			if len(a.buffer) > 0 {
				err = unexpected(err)
			}
			return nil, err
		}
	}
}

// head returns the lines up to the first empty one. At the end of what was
// said before there is one it returns io.EOF.
func (a *ahead) head(most int) ([]byte, error) {
	for offset := 0; ; {
		line, err := a.line(offset, most-offset)
		if err != nil {
			return nil, err
		}
		offset += len(line)
		if len(line) == len("\r\n") {
			return a.buffer[:offset], nil
		}
	}
}

// pass passes n bytes on.
func (a *ahead) pass(to net.Conn, n int64) error {
	now := min(n, int64(len(a.buffer)))
	if _, err := to.Write(a.buffer[:now]); err != nil {
		return err
	}
	a.drop(int(now))
	if n -= now; n == 0 {
		return nil
	}
	copied, err := sockets.Copy(to, &io.LimitedReader{R: a.Conn, N: n})
	if err == nil && copied < n {
		err = io.ErrUnexpectedEOF
	}
	return err
}

// passAll passes on all that is ever said, and its end.
func (a *ahead) passAll(to net.Conn) error {
	if err := a.pass(to, int64(len(a.buffer))); err != nil {
		return err
	}
	return sockets.Pass(to, a.Conn)
}

// drop lets go of a buffer that is empty: most connections are idle.
func (a *ahead) drop(n int) {
	a.buffer = a.buffer[n:]
	if len(a.buffer) == 0 {
		a.buffer = nil
	}
}
