package policy

import (
	"cmp"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// Domain allows a name or all names below one, at one port or at any.
type Domain struct {
	// Name in lower case, without a dot at its end.
	Name string
	// Below means the names below Name, at any depth, and not Name itself:
	// written "*.example.com".
	Below bool
	// Port is 0 for any.
	Port uint16
}

// maxName is the longest name in DNS, in its text form (RFC 1035, section
// 2.3.4), and maxLabel the longest label.
const (
	maxName  = 253
	maxLabel = 63
)

// ParseDomain reads "example.com", "*.example.com" or either with ":443".
// Names are those of DNS in ASCII: an international one is written "xn--...".
func ParseDomain(text string) (Domain, error) {
	d := Domain{Name: strings.ToLower(text)}
	if name, port, ok := strings.Cut(d.Name, ":"); ok {
		n, err := parsePort(port)
		if err != nil {
			return Domain{}, err
		}
		d.Name, d.Port = name, n
	}
	if name, ok := strings.CutPrefix(d.Name, "*."); ok {
		d.Name, d.Below = name, true
	}
	d.Name = strings.TrimSuffix(d.Name, ".")
	if err := checkName(d.Name); err != nil {
		return Domain{}, err
	}
	return d, nil
}

func checkName(name string) error {
	if strings.Contains(name, "*") {
		return fmt.Errorf(`wildcards are only supported as a leading "*." prefix`)
	}
	if name == "" || len(name) > maxName {
		return fmt.Errorf("a name has 1 to %d characters", maxName)
	}
	if _, err := netip.ParseAddr(name); err == nil {
		return fmt.Errorf("it is an address, which goes into a CIDR: %s/32", name)
	}
	for label := range strings.SplitSeq(name, ".") {
		if err := checkLabel(label); err != nil {
			return err
		}
	}
	return nil
}

// checkLabel is RFC 1123, section 2.1, and underscores, which are in use.
func checkLabel(label string) error {
	if label == "" || len(label) > maxLabel {
		return fmt.Errorf("a label has 1 to %d characters", maxLabel)
	}
	if label[0] == '-' || label[len(label)-1] == '-' {
		return fmt.Errorf("a label does not begin or end with a dash")
	}
	for _, c := range []byte(label) {
		if c != '-' && c != '_' && (c < '0' || c > '9') && (c < 'a' || c > 'z') {
			return fmt.Errorf("a label is of letters, digits and dashes")
		}
	}
	return nil
}

// Matches tells whether d means name, in any case and with or without a dot
// at its end.
func (d Domain) Matches(name string) bool {
	name = strings.ToLower(strings.TrimSuffix(name, "."))
	if !d.Below {
		return name == d.Name
	}
	below, ok := strings.CutSuffix(name, "."+d.Name)
	return ok && below != ""
}

// String is how ParseDomain reads it.
func (d Domain) String() string {
	text := d.Name
	if d.Below {
		text = "*." + text
	}
	if d.Port != 0 {
		text += ":" + strconv.Itoa(int(d.Port))
	}
	return text
}

// MarshalText is String.
func (d Domain) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText is ParseDomain.
func (d *Domain) UnmarshalText(text []byte) (err error) {
	*d, err = ParseDomain(string(text))
	return err
}

func (d Domain) compare(e Domain) int { return cmp.Compare(d.String(), e.String()) }
