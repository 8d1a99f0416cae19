// Package denials keeps a sandbox's network log: what the firewall, the
// resolver and the proxy have denied or allowed.
//
// System calls beyond read, write and epoll: pwrite64, pread64, lseek and
// ftruncate for the log's file.
package denials

import (
	"io"
	"net/netip"

	"github.com/vmsan/vmsan/api"
)

// Log writes events as lines of JSON. Repeats of an event are merged, and
// there is a limit to how many lines a second it writes, so that a flood
// costs little.
type Log struct{}

// New makes a Log of w, to which each line is written by one Write.
func New(w io.Writer) *Log { return &Log{} }

// Log takes an event whose Time and Count may be left zero. It does not
// block.
func (l *Log) Log(e api.NetworkEvent) {}

// Close writes what is still to be written.
func (l *Log) Close() error { return nil }

// Watch logs the packets that the firewall tells of, until socket is closed.
// It is a netlink socket bound to an NFLOG group, in non-blocking mode, that
// the caller made an os.File of: one Read is one datagram. The rules' log
// prefixes are the reasons. Names returns what the resolver knows of an
// address.
func (l *Log) Watch(socket io.Reader, names func(netip.Addr) []string) error { return nil }
