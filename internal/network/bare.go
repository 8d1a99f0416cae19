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
	ns, err := netns.New()
	if err != nil {
		return nil, namespaceRemedies.explain(err)
	}
	err = ns.Do(func() (err error) {
		tap, err = openTap(tapName)
		return tunRemedies.explain(err)
	})
	if err = errors.Join(err, ns.Close()); err != nil && tap != nil {
		tap.Close()
		return nil, err
	}
	return tap, err
}
