package sandbox

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"

	"github.com/vmsan/vmsan/internal/guest"
	"github.com/vmsan/vmsan/internal/vmm"
)

// FirstClient returns a client for one command in a guest that is not there
// yet, and what Create is to be given for it. The command waits in the stream
// and starts as soon as the guest can, while the host is still busy writing
// down that it runs.
func FirstClient() (*guest.Client, *os.File, error) {
	ours, theirs, err := vmm.SocketPair("first stream")
	if err != nil {
		return nil, nil, err
	}
	defer ours.Close()
	conn, err := net.FileConn(ours)
	if err != nil {
		theirs.Close()
		return nil, nil, fmt.Errorf("open first stream to guest: %w", err)
	}
	streams := make(chan net.Conn, 1)
	streams <- conn
	return guest.New(func(context.Context) (net.Conn, error) {
		select {
		case stream := <-streams:
			return stream, nil
		default:
			return nil, errors.New("the first stream to the guest is used up")
		}
	}), theirs, nil
}
