package monitor

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/vmsan/vmsan/api"
)

// Report is what a monitor tells the command that started it, once: that the
// sandbox runs, or why it does not.
type Report struct {
	Error *api.Error `json:"error,omitempty"`
}

func (r Report) write(pipe *os.File) error {
	defer pipe.Close()
	return json.NewEncoder(pipe).Encode(r)
}

// maxReport bounds a report in bytes.
const maxReport = 1 << 20

// ReadReport reads the report of a monitor from the other end of its pipe.
func ReadReport(pipe io.Reader) error {
	var r Report
	err := json.NewDecoder(io.LimitReader(pipe, maxReport)).Decode(&r)
	if errors.Is(err, io.EOF) {
		return errors.New("the sandbox's monitor died before it could say why")
	}
	if err != nil {
		return fmt.Errorf("hear from the sandbox's monitor: %w", err)
	}
	if r.Error != nil {
		return r.Error
	}
	return nil
}
