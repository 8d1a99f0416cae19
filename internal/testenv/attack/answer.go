package attack

import (
	"archive/tar"
	"bufio"
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/vmsan/vmsan/internal/guest/proto/filesystem"
	"github.com/vmsan/vmsan/internal/guest/proto/process"
	"github.com/vmsan/vmsan/internal/guest/wire"
	"github.com/vmsan/vmsan/internal/link"
)

// LieWord is the command by which the host of a liar says what it is to lie
// about from then on.
const LieWord = "lie"

// asCommand are lies about a command that was to be run.
var asCommand = map[string]func(stream net.Conn){
	"command-output-without-end": func(s net.Conn) {
		s.Write(wire.Number(wire.Started, 7))
		endless(s, wire.Frame(wire.Stdout, make([]byte, 32<<10)))
	},
	"command-frame-too-long": func(s net.Conn) {
		head := make([]byte, wire.HeaderSize)
		wire.Header{Kind: wire.Stdout, Length: 1<<32 - 1}.Put(head)
		endless(s, head)
	},
	"command-frame-of-no-kind": func(s net.Conn) { endless(s, wire.Frame(0x7f, []byte("x"))) },
	"command-begun-again":      func(s net.Conn) { endless(s, wire.Number(wire.Started, 7)) },
	"command-false-room": func(s net.Conn) {
		s.Write(wire.Number(wire.Started, 7))
		endless(s, wire.Number(wire.Taken, 1<<32-1))
	},
	"command-odd-end": func(s net.Conn) { s.Write(wire.End{Code: -1 << 31, Signal: 1<<31 - 1}.Frame()) },
	"command-failed-with-escapes": func(s net.Conn) {
		s.Write(wire.Failure{Code: 5, Text: strings.Repeat(Escapes, 100)}.Frame())
	},
	"command-cut-short": func(s net.Conn) { s.Write([]byte{byte(wire.Stdout), 0, 0}) },
	"command-no-answer": func(net.Conn) { select {} },
}

// asHTTP are lies about a request of HTTP.
var asHTTP = map[string]func(s net.Conn, r *http.Request){
	"answer-of-nonsense": func(s net.Conn, _ *http.Request) { s.Write(random(4096)) },
	"answer-with-long-head": func(s net.Conn, _ *http.Request) {
		io.WriteString(s, "HTTP/1.1 200 OK\r\n")
		endless(s, []byte("X-More: "+strings.Repeat("x", 4000)+"\r\n"))
	},
	"answer-with-long-line": func(s net.Conn, _ *http.Request) {
		io.WriteString(s, "HTTP/1.1 200 ")
		endless(s, bytes.Repeat([]byte("OK"), 4000))
	},
	"answer-without-end": func(s net.Conn, _ *http.Request) {
		io.WriteString(s, "HTTP/1.1 200 OK\r\nContent-Type: application/proto\r\nTransfer-Encoding: chunked\r\n\r\n")
		endless(s, chunk(make([]byte, 16<<10)))
	},
	"answer-of-false-length": func(s net.Conn, _ *http.Request) {
		io.WriteString(s, "HTTP/1.1 200 OK\r\nContent-Type: application/proto\r\nContent-Length: 9223372036854775807\r\n\r\nshort")
	},
	"answer-that-unpacks": func(s net.Conn, _ *http.Request) {
		io.WriteString(s, "HTTP/1.1 200 OK\r\nContent-Type: application/proto\r\nContent-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n\r\n")
		s.Write(chunk(bomb()))
		io.WriteString(s, "0\r\n\r\n")
	},
	"error-without-end": func(s net.Conn, _ *http.Request) {
		io.WriteString(s, "HTTP/1.1 500 No\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n")
		s.Write(chunk([]byte(`{"code":"internal","message":"`)))
		endless(s, chunk(bytes.Repeat([]byte("x"), 16<<10)))
	},
	"error-that-unpacks": func(s net.Conn, _ *http.Request) {
		io.WriteString(s, "HTTP/1.1 500 No\r\nContent-Type: application/json\r\nContent-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n\r\n")
		s.Write(chunk(bomb()))
		io.WriteString(s, "0\r\n\r\n")
	},
	"error-with-escapes": func(s net.Conn, _ *http.Request) {
		text := fmt.Sprintf(`{"code":"internal","message":%q}`, "\u001b[2J\u009b31m\u202e")
		text = strings.NewReplacer(`\x1b`, `\u001b`).Replace(text)
		fmt.Fprintf(s, "HTTP/1.1 500 No\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", len(text), text)
	},
	"answers-to-come": func(s net.Conn, _ *http.Request) { endless(s, []byte("HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n")) },
	"answer-elsewhere": func(s net.Conn, _ *http.Request) {
		io.WriteString(s, "HTTP/1.1 307 Go\r\nLocation: http://169.254.169.254/latest/meta-data\r\nContent-Length: 0\r\n\r\n")
	},
	"processes-with-escapes": func(s net.Conn, _ *http.Request) {
		evil := "\x1b[2J\u009b31m\u202e"
		message, _ := proto.Marshal(&process.ListResponse{Processes: []*process.ProcessInfo{{
			Pid: 7, Config: &process.ProcessConfig{Cmd: evil, Args: []string{evil}, Cwd: &evil, User: &evil},
		}}})
		respond(s, message)
	},
	"copy-elsewhere": func(s net.Conn, r *http.Request) { copyLie(s, r, treeElsewhere) },
	"copy-cut-short": func(s net.Conn, r *http.Request) {
		copyLie(s, r, func(w *tar.Writer) { w.WriteHeader(&tar.Header{Name: "pit", Mode: 0o644, Size: 1 << 60}) })
	},
	"copy-with-long-trailer": func(s net.Conn, r *http.Request) {
		if r.URL.Path != treePath {
			copyLie(s, r, nil)
			return
		}
		io.WriteString(s, "HTTP/1.1 200 OK\r\nContent-Type: application/x-tar\r\nTrailer: Vmsan-Error\r\nTransfer-Encoding: chunked\r\n\r\n")
		var files bytes.Buffer
		tar.NewWriter(&files).Close()
		s.Write(chunk(files.Bytes()))
		io.WriteString(s, "0\r\nVmsan-Error: ")
		endless(s, bytes.Repeat([]byte("x"), 4000))
	},
	"stop-that-is-no-stop": func(s net.Conn, _ *http.Request) { respond(s, nil) },
	"silence":              func(net.Conn, *http.Request) { select {} },
}

const treePath = "/vmsan/tree"

// InAnswers names the lies in answers.
func InAnswers() []string {
	return slices.Concat(slices.Sorted(maps.Keys(asCommand)), slices.Sorted(maps.Keys(asHTTP)))
}

func endless(s io.Writer, text []byte) {
	for {
		if _, err := s.Write(text); err != nil {
			return
		}
	}
}

func chunk(text []byte) []byte {
	return append(fmt.Appendf(nil, "%x\r\n", len(text)), append(text, '\r', '\n')...)
}

// bomb is a gibibyte when it is unpacked.
func bomb() []byte {
	var packed bytes.Buffer
	w := gzip.NewWriter(&packed)
	w.Write(make([]byte, 1<<20))
	w.Close()
	return bytes.Repeat(packed.Bytes(), 1<<10)
}

func respond(s io.Writer, message []byte) {
	fmt.Fprintf(s, "HTTP/1.1 200 OK\r\nContent-Type: application/proto\r\nContent-Length: %d\r\n\r\n%s", len(message), message)
}

// copyLie says that there is a directory, and then what is in it.
func copyLie(s io.Writer, r *http.Request, files func(*tar.Writer)) {
	if r.URL.Path != treePath {
		message, _ := proto.Marshal(&filesystem.StatResponse{Entry: &filesystem.EntryInfo{
			Name: "pit", Path: "/../../pit", Type: filesystem.FileType_FILE_TYPE_DIRECTORY,
		}})
		respond(s, message)
		return
	}
	var packed bytes.Buffer
	w := tar.NewWriter(&packed)
	files(w)
	// What is cut short cannot be closed.
	_ = w.Close()
	io.WriteString(s, "HTTP/1.1 200 OK\r\nContent-Type: application/x-tar\r\nTransfer-Encoding: chunked\r\n\r\n")
	s.Write(chunk(packed.Bytes()))
	io.WriteString(s, "0\r\n\r\n")
}

// Outside is the name of files that must not be made outside of a copy.
const Outside = "vmsan-was-here"

func treeElsewhere(w *tar.Writer) {
	file := func(name string) {
		w.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: 4})
		io.WriteString(w, "evil")
	}
	w.WriteHeader(&tar.Header{Name: "pit/", Typeflag: tar.TypeDir, Mode: 0o755})
	w.WriteHeader(&tar.Header{Name: "pit/up", Typeflag: tar.TypeSymlink, Linkname: ".."})
	file("pit/up/" + Outside)
	file("../" + Outside)
	file("pit/../../" + Outside)
	file("/tmp/" + Outside)
}

// standing is a guest whose clock stands while it is silent.
type standing struct{ lie *atomic.Value }

func (s standing) SetClock(time.Time, bool) error {
	if s.lie.Load() == "silence" {
		return errors.New("this clock stands")
	}
	return nil
}

func (standing) Identify(link.Identity) error { return nil }

// lieInAnswers is an agent as far as the link goes.
func lieInAnswers(control, data *os.File) {
	var lie atomic.Value
	lie.Store("")
	guest := link.Listen(control, data, standing{&lie})
	go func() {
		for {
			stream, err := guest.Accept()
			if err != nil {
				return
			}
			go func() {
				defer stream.Close()
				answer(stream, &lie)
			}()
		}
	}()
}

func answer(stream net.Conn, lie *atomic.Value) {
	in := bufio.NewReader(stream)
	first, err := in.Peek(1)
	if err != nil {
		return
	}
	if first[0] != wire.Hello {
		for {
			request, err := http.ReadRequest(in)
			if err != nil {
				return
			}
			if tell := asHTTP[lie.Load().(string)]; tell != nil {
				io.Copy(io.Discard, request.Body)
				tell(stream, request)
			}
			if !strings.HasPrefix(lie.Load().(string), "copy-") {
				return
			}
		}
	}
	in.Discard(1)
	header, err := wire.ReadHeader(in, true)
	if err != nil {
		return
	}
	request, err := wire.ReadRequest(in, header)
	if err != nil {
		return
	}
	go io.Copy(io.Discard, in)
	if len(request.Args) == 2 && request.Args[0] == LieWord {
		lie.Store(request.Args[1])
		stream.Write(wire.Number(wire.Started, 7))
		stream.Write(wire.End{}.Frame())
		return
	}
	if tell := asCommand[lie.Load().(string)]; tell != nil {
		tell(stream)
	}
}
