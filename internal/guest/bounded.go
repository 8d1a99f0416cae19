package guest

import (
	"errors"
	"io"
	"net/http"
	"strings"
)

// bounded ends answers that are too long. The library that reads them stops
// taking them in where it is told to, but goes on reading to their end, which a
// guest need not come to. A stream of messages may be of any length: its
// messages have bounds of their own.
type bounded struct{ http.RoundTripper }

// streamType begins the content type of a stream of messages.
const streamType = "application/connect+"

func (b bounded) RoundTrip(request *http.Request) (*http.Response, error) {
	response, err := b.RoundTripper.RoundTrip(request)
	if err != nil {
		return nil, err
	}
	if response.StatusCode != http.StatusOK || !strings.HasPrefix(response.Header.Get("Content-Type"), streamType) {
		response.Body = &boundedBody{ReadCloser: response.Body, left: 2 * maxMessage}
	}
	return response, nil
}

var errLong = errors.New("the guest's answer is too long")

type boundedBody struct {
	io.ReadCloser
	left int
}

func (b *boundedBody) Read(p []byte) (int, error) {
	if b.left <= 0 {
		return 0, errLong
	}
	n, err := b.ReadCloser.Read(p[:min(len(p), b.left)])
	b.left -= n
	return n, err
}
