package firewall

import (
	"cmp"
	"encoding/binary"
	"net/netip"
	"slices"

	"github.com/google/nftables"
)

// span is a range of addresses, both ends in it.
type span struct{ first, last uint32 }

// merge makes of prefixes, which may overlap, spans that do not even touch:
// the kernel refuses sets in which they do.
func merge(prefixes []netip.Prefix) []span {
	var all []span
	for _, p := range prefixes {
		raw := p.Masked().Addr().As4()
		first := binary.BigEndian.Uint32(raw[:])
		all = append(all, span{first, first | uint32(uint64(1)<<(32-p.Bits())-1)})
	}
	slices.SortFunc(all, func(a, b span) int { return cmp.Compare(a.first, b.first) })
	var merged []span
	for _, s := range all {
		if n := len(merged); n > 0 && uint64(s.first) <= uint64(merged[n-1].last)+1 {
			merged[n-1].last = max(merged[n-1].last, s.last)
		} else {
			merged = append(merged, s)
		}
	}
	return merged
}

// elements are spans as the kernel has them in an interval set: where each
// begins, and where what is behind it does, which is nowhere at the end of the
// address space.
func elements(spans []span) []nftables.SetElement {
	var list []nftables.SetElement
	for _, s := range spans {
		list = append(list, nftables.SetElement{Key: binary.BigEndian.AppendUint32(nil, s.first)})
		if end := s.last + 1; end != 0 {
			list = append(list, nftables.SetElement{Key: binary.BigEndian.AppendUint32(nil, end), IntervalEnd: true})
		}
	}
	return list
}
