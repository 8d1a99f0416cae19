package firewall

import (
	"errors"
	"fmt"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// tableDeleted is the type of the kernel's message about that
// (linux/netfilter/nfnetlink.h, nf_tables.h).
const tableDeleted = unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_DELTABLE

// Losses tell of tables that somebody deletes.
type Losses struct{ conn *netlink.Conn }

// WatchLosses begins to listen in the calling thread's namespace.
func WatchLosses() (*Losses, error) {
	conn, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err == nil {
		if err = conn.JoinGroup(unix.NFNLGRP_NFTABLES); err != nil {
			conn.Close()
		}
	}
	if err != nil {
		return nil, fmt.Errorf("listen to changes of nf_tables: %w", err)
	}
	return &Losses{conn}, nil
}

// Next returns when a table was deleted, which may be another's, or there was
// more to hear than could be kept. After Close it returns an error.
func (l *Losses) Next() error {
	for {
		messages, err := l.conn.Receive()
		if errors.Is(err, unix.ENOBUFS) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("listen to changes of nf_tables: %w", err)
		}
		for _, m := range messages {
			if m.Header.Type == tableDeleted {
				return nil
			}
		}
	}
}

// Close ends Next.
func (l *Losses) Close() error { return l.conn.Close() }
