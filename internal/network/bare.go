package network

import (
	"errors"
	"os"

	"github.com/vmsan/vmsan/internal/network/netns"
)

// BareTap makes a tap like a sandbox's that leads nowhere, for a machine which
// has to have one and nobody to talk to: in a namespace of its own, with
// nothing on the host. It goes when its file is closed.
func BareTap() (tap *os.File, err error) {
	ns, tap, err := bareTap()
	if err != nil {
		return nil, err
	}
	return tap, ns.Close()
}

// LentBareTap is BareTap for a VMM that opens the tap by name. It goes with
// its namespace, which the caller closes.
func LentBareTap(owner uint32) (name string, namespace *os.File, err error) {
	ns, tap, err := bareTap()
	if err != nil {
		return "", nil, err
	}
	if err := lendTap(tap, owner); err != nil {
		return "", nil, errors.Join(err, ns.Close())
	}
	return tapName, ns.File(), nil
}

func bareTap() (ns *netns.Namespace, tap *os.File, err error) {
	if ns, err = netns.New(); err != nil {
		return nil, nil, namespaceRemedies.explain(err)
	}
	err = ns.Do(func() (err error) {
		tap, err = openTap(tapName)
		return tunRemedies.explain(err)
	})
	if err != nil {
		return nil, nil, errors.Join(err, ns.Close())
	}
	return ns, tap, nil
}
