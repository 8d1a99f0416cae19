package network

import (
	"errors"
	"fmt"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// A shaped device sends in bursts of a fiftieth of a second's worth, and keeps
// a twentieth of a second's more for later: short enough to be no burden to
// who waits, long enough for TCP to fill the line. Slow ones need room for
// some whole packets.
const (
	burstsPerSecond = 50
	queuesPerSecond = 20
	minBurst        = 16 << 10
	minQueue        = 64 << 10
)

// shape limits what a device sends to bits a second, if that is not 0.
func shape(links *links, link netlink.Link, bits uint64) error {
	if bits == 0 {
		return nil
	}
	rate := bits / 8
	burst := max(rate/burstsPerSecond, minBurst)
	queue := max(rate/queuesPerSecond, minQueue)
	err := links.QdiscAdd(&netlink.Tbf{
		QdiscAttrs: rootQdisc(link),
		Rate:       rate,
		Limit:      uint32(burst + queue),
		Buffer:     netlink.Xmittime(rate, uint32(burst)),
	})
	if err != nil {
		return fmt.Errorf("limit %s to %d bits a second: %w", link.Attrs().Name, bits, err)
	}
	return nil
}

// unshape takes the limit off a device, if there is one.
func unshape(links *links, link netlink.Link) error {
	err := links.QdiscDel(&netlink.Tbf{QdiscAttrs: rootQdisc(link)})
	if err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("take the limit off %s: %w", link.Attrs().Name, err)
	}
	return nil
}

func rootQdisc(link netlink.Link) netlink.QdiscAttrs {
	return netlink.QdiscAttrs{LinkIndex: link.Attrs().Index, Handle: netlink.MakeHandle(1, 0), Parent: netlink.HANDLE_ROOT}
}
