package network

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/vmsan/vmsan/internal/network/firewall"
)

// Found is what the host's namespace has of a sandbox, by its name.
type Found struct {
	ID string
	// Link tells whether there is a device, Owner what Config.Owner was when it
	// was made.
	Link  bool
	Owner string
	// Rules tells whether there are rules of the sandbox's own. A living
	// sandbox has none without a device.
	Rules bool
}

// Find looks for what the host's namespace has of sandboxes, living or dead,
// whosever they are, in the order of their ids.
func Find() ([]Found, error) {
	h, err := openHost()
	if err != nil {
		return nil, err
	}
	defer h.close()
	// Rules before devices: those of a sandbox that comes meanwhile are not seen
	// without its device.
	rules, err := h.rules.Links()
	if err != nil {
		return nil, err
	}
	devices, err := whole(h.links.LinkList)
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	all := map[string]Found{}
	for _, name := range rules {
		if id, ok := idOf(name); ok {
			all[id] = Found{ID: id, Rules: true}
		}
	}
	for _, d := range devices {
		if id, ok := idOf(d.Attrs().Name); ok {
			all[id] = Found{ID: id, Link: true, Owner: d.Attrs().Alias, Rules: all[id].Rules}
		}
	}
	return slices.SortedFunc(maps.Values(all), func(a, b Found) int { return strings.Compare(a.ID, b.ID) }), nil
}

// idOf undoes linkName.
func idOf(link string) (id string, ok bool) {
	rest, ok := strings.CutPrefix(link, firewall.LinkPrefix)
	id = idPrefix + rest
	return id, ok && checkID(id) == nil
}
