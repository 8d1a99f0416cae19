package wire

import (
	"bytes"
	"io"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestRequest(t *testing.T) {
	for _, want := range []*Request{
		{Args: []string{"true"}},
		{
			Args: []string{"sh", "-c", "", "a\x00b\xff"}, Env: map[string]string{"A": "", "": "=", "B": "2"},
			Dir: "/tmp", User: "nobody:1", Timeout: 90 * time.Second, Stdin: true,
		},
		{Args: []string{"sh"}, Keep: true, Terminal: &Size{Columns: 132, Rows: 65535}},
	} {
		r := bytes.NewReader(want.Frame())
		h, err := ReadHeader(r, true)
		if err != nil || (h.Kind == StartKept) != want.Keep {
			t.Fatalf("header %v, %v", h, err)
		}
		got, err := ReadRequest(r, h)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got); diff != "" || r.Len() != 0 {
			t.Errorf("%d bytes left, and\n%s", r.Len(), diff)
		}
	}
}

func TestAnswers(t *testing.T) {
	end := End{Code: -1, Signal: 9, TimedOut: true}
	failure := Failure{Code: 5, Text: "no such file"}
	stream := bytes.NewBuffer(Number(Started, 1<<31))
	stream.Write(end.Frame())
	stream.Write(failure.Frame())
	h, _ := ReadHeader(stream, false)
	if n, err := ReadNumber(stream, h); h.Kind != Started || n != 1<<31 || err != nil {
		t.Errorf("%v: got %d, %v", h, n, err)
	}
	h, _ = ReadHeader(stream, false)
	if got, err := ReadEnd(stream, h); got != end || err != nil {
		t.Errorf("%v: got %v, %v", h, got, err)
	}
	h, _ = ReadHeader(stream, false)
	if got, err := ReadFailure(stream, h); got != failure || err != nil {
		t.Errorf("%v: got %v, %v", h, got, err)
	}
	if _, err := ReadHeader(stream, false); err != io.EOF {
		t.Errorf("at the end: %v", err)
	}
}

// What is too long is refused by its header, and a side cannot say what only
// the other may.
func TestBadHeaders(t *testing.T) {
	for _, b := range [][]byte{
		{0, 0, 0, 0, 0}, {7, 0, 0, 0, 0}, {0x10, 0, 0, 0, 0}, {0x18, 0, 0, 0, 0}, {0xff, 0, 0, 0, 0},
		{byte(Start), 0, 0x40, 0, 1}, {byte(StartKept), 0, 0x40, 0, 1}, {byte(Input), 0, 4, 0, 1}, {byte(InputEnd), 0, 0, 0, 1},
		{byte(Resize), 0, 0, 0, 5}, {byte(Join), 0, 0, 0, 5}, {byte(CaughtUp), 0, 0, 0, 1}, {byte(Stdout), 0, 0x20, 0, 1}, {byte(Failed), 0xff, 0xff, 0xff, 0xff}, {byte(Ended), 0, 0, 0, 10},
	} {
		for _, fromHost := range []bool{true, false} {
			if h, err := ReadHeader(bytes.NewReader(b), fromHost); err == nil {
				t.Errorf("%x from host %v: %v", b, fromHost, h)
			}
		}
	}
	for kind, fromHost := range map[Kind]bool{Start: false, Input: false, Resize: false, Stdout: true, Ended: true, CaughtUp: true} {
		if _, err := ReadHeader(bytes.NewReader(Frame(kind, nil)), fromHost); err == nil {
			t.Errorf("kind %#x from the wrong side passed", kind)
		}
	}
	if _, err := ReadHeader(bytes.NewReader([]byte{byte(Stdout), 0}), false); err != io.ErrUnexpectedEOF {
		t.Errorf("a cut header: %v", err)
	}
}

// FuzzRequest is the agent's decoder.
func FuzzRequest(f *testing.F) {
	full := Request{Args: []string{"a", "b"}, Env: map[string]string{"k": "v"}, Dir: "/", User: "u", Timeout: 1, Stdin: true, Terminal: &Size{80, 24}}
	f.Add(full.Frame()[HeaderSize:])
	f.Add([]byte{})
	f.Add(bytes.Repeat([]byte{0xff}, 40))
	f.Fuzz(func(t *testing.T, body []byte) {
		request, err := parseRequest(body)
		if err != nil {
			return
		}
		again, err := parseRequest(request.Frame()[HeaderSize:])
		if diff := cmp.Diff(request, again); err != nil || diff != "" {
			t.Errorf("%v\n%s", err, diff)
		}
	})
}

// FuzzAnswer is the host's decoder: whatever a guest sends, it reads no more
// than a bounded frame at a time, and ends.
func FuzzAnswer(f *testing.F) {
	f.Add(append(Number(Started, 7), Frame(Stdout, []byte("text"))...))
	f.Add(append(End{Code: 3}.Frame(), Failure{1, "x"}.Frame()...))
	f.Add([]byte{byte(Failed), 0, 0, 0, 3, 1, 2, 3})
	f.Add(append(Frame(CaughtUp, nil), Number(Taken, 1)...))
	f.Fuzz(func(t *testing.T, stream []byte) {
		for r := bytes.NewReader(stream); ; {
			h, err := ReadHeader(r, false)
			if err != nil {
				return
			}
			if h.Length < 0 || h.Length > MaxOutput {
				t.Fatalf("a frame of %d bytes", h.Length)
			}
			switch h.Kind {
			case Started, Taken:
				_, err = ReadNumber(r, h)
			case Ended:
				_, err = ReadEnd(r, h)
			case Failed:
				_, err = ReadFailure(r, h)
			case Stdout, Stderr, CaughtUp:
				_, err = io.CopyN(io.Discard, r, int64(h.Length))
			default:
				t.Fatalf("kind %#x from a guest", h.Kind)
			}
			if err != nil {
				return
			}
		}
	})
}
