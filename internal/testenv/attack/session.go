package attack

import (
	"bufio"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"strings"
	"time"
)

// session is what the host has begun with us.
type session struct {
	nonce         []byte
	control, data io.Writer
	opened        chan uint32 // the streams that the host opens
}

// inSessions are lies of a guest in the place of the agent, below all that is
// said in streams. Each session is told the next one, the last ones the last.
var inSessions = []struct {
	name string
	tell func(s session)
}{
	{"greeting-without-end", func(s session) {
		for {
			if _, err := s.data.Write(random(16 << 10)); err != nil {
				return
			}
		}
	}},
	{"frame-of-no-kind", func(s session) { s.begin(frame(99, 1, 0)) }},
	{"stream-from-the-guest", func(s session) { s.begin(append(frame(frameOpen, 2, 4), "evil"...)) }},
	{"more-data-than-room", func(s session) {
		s.begin()
		for {
			stream := <-s.opened
			for range 400 { // of 16 KiB: more than the window
				s.data.Write(append(frame(frameData, stream, 16<<10), make([]byte, 16<<10)...))
			}
		}
	}},
	{"room-for-more-than-all", func(s session) {
		s.begin()
		for {
			s.data.Write(frame(frameRoom, <-s.opened, 1<<32-1))
		}
	}},
	{"data-after-the-end", func(s session) {
		s.begin()
		for {
			stream := <-s.opened
			s.data.Write(append(frame(frameEnd, stream, 0), append(frame(frameData, stream, 4), "more"...)...))
		}
	}},
	{"data-without-end", func(s session) {
		s.begin(frame(frameData, nobody, 4<<20))
		for {
			if _, err := s.data.Write(make([]byte, 16<<10)); err != nil {
				return
			}
		}
	}},
	{"failed-again-and-again", func(s session) { fmt.Fprintf(s.control, "failed %s\n", strings.Repeat(Escapes, 100)) }},
}

// InSessions names the lies in sessions, in the order in which they are told.
func InSessions() (names []string) {
	for _, lie := range inSessions {
		names = append(names, lie.name)
	}
	return names
}

// begin answers the host as an agent does, and goes on with said.
func (s session) begin(said ...[]byte) {
	s.data.Write(s.nonce)
	for _, text := range said {
		s.data.Write(text)
	}
}

func lieInSessions(control, data *os.File, console io.Writer) {
	opened := make(chan uint32, 64)
	go watchOpened(patient{data}, opened)
	lines := bufio.NewScanner(patient{control})
	lines.Buffer(nil, 1<<20)
	go func() {
		for told := 0; lines.Scan(); {
			digits, ok := strings.CutPrefix(lines.Text(), "reset ")
			nonce, err := hex.DecodeString(digits)
			if !ok || err != nil {
				continue
			}
			lie := inSessions[min(told, len(inSessions)-1)]
			fmt.Fprintln(console, "the liar tells", lie.name)
			go lie.tell(session{nonce: nonce, control: control, data: data, opened: opened})
			told++
		}
	}()
}

// watchOpened looks for frames that open a stream. What the host says between
// is the nonce of each session, which it passes over byte by byte: no nonce that
// matters looks like the head of a frame.
func watchOpened(data io.Reader, opened chan<- uint32) {
	in := bufio.NewReader(data)
	for {
		head, err := in.Peek(9)
		if err != nil {
			return
		}
		length := binary.BigEndian.Uint32(head[5:])
		if head[0] != frameOpen || head[1] != 0 || length > 1<<20 {
			in.Discard(1)
			continue
		}
		stream := binary.BigEndian.Uint32(head[1:])
		in.Discard(9)
		select {
		case opened <- stream:
		default: // this lie is not about streams
		}
		io.CopyN(io.Discard, in, int64(length))
	}
}

// patient reads on where a port reads as ended: nobody is at the host's end.
type patient struct{ io.Reader }

func (p patient) Read(b []byte) (int, error) {
	for {
		if n, _ := p.Reader.Read(b); n > 0 {
			return n, nil
		}
		time.Sleep(10 * time.Millisecond)
	}
}
