package policy

import (
	"encoding"
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

// parsed is how a test reads what a type's function makes of a text: as text
// again, or as an error.
func parsed[T fmt.Stringer](parse func(string) (T, error)) func(string) string {
	return func(text string) string {
		value, err := parse(text)
		if err != nil {
			return "error: " + err.Error()
		}
		return value.String()
	}
}

// checkParse compares; a wanted error may be a part of it.
func checkParse(t *testing.T, parse func(string) string, wanted map[string]string) {
	t.Helper()
	for text, want := range wanted {
		got := parse(text)
		part, isError := strings.CutPrefix(want, "error: ")
		if isError && (!strings.HasPrefix(got, "error: ") || !strings.Contains(got, part)) || !isError && got != want {
			t.Errorf("%.80q: got %.200q, want %q", text, got, want)
		}
	}
}

// TestParseDomain has the cases A4.
func TestParseDomain(t *testing.T) {
	long := strings.Repeat("a", 63)
	name253 := strings.Join([]string{long, long, long, long[:61]}, ".")
	checkParse(t, parsed(ParseDomain), map[string]string{
		"example.com":               "example.com",
		"Example.COM":               "example.com",
		"example.com.":              "example.com",
		"*.example.com":             "*.example.com",
		"*.EXAMPLE.com.:443":        "*.example.com:443",
		"example.com:65535":         "example.com:65535",
		"localhost":                 "localhost",
		"_dmarc.example.com":        "_dmarc.example.com",
		"xn--bcher-kva.example":     "xn--bcher-kva.example",
		long + ".com":               long + ".com",
		name253:                     name253,
		"":                          "error: 1 to 253 characters",
		"*.":                        "error: 1 to 253 characters",
		"*":                         `error: leading "*."`,
		"*.*.example.com":           `error: leading "*."`,
		"a.*.com":                   `error: leading "*."`,
		"a*.com":                    `error: leading "*."`,
		"example.*":                 `error: leading "*."`,
		"exa mple.com":              "error: letters, digits and dashes",
		"example.com\n":             "error: letters, digits and dashes",
		" example.com":              "error: letters, digits and dashes",
		"ex\x00ample.com":           "error: letters, digits and dashes",
		"bücher.example":            "error: letters, digits and dashes",
		"http://example.com":        "error: invalid port",
		"example.com/path":          "error: letters, digits and dashes",
		"-a.com":                    "error: dash",
		"a-.com":                    "error: dash",
		"a..com":                    "error: 1 to 63 characters",
		".com":                      "error: 1 to 63 characters",
		"example.com..":             "error: 1 to 63 characters",
		long + "a.com":              "error: 1 to 63 characters",
		name253 + "a":               "error: 1 to 253 characters",
		"203.0.113.7":               "error: 203.0.113.7/32",
		"203.0.113.7:443":           "error: 203.0.113.7/32",
		"2001:db8::1":               "error: invalid port",
		"example.com:":              "error: invalid port",
		"example.com:0":             "error: invalid port",
		"example.com:65536":         "error: invalid port",
		"example.com:080":           "error: invalid port",
		"example.com:443:443":       "error: invalid port",
		strings.Repeat("a.", 1<<16): "error: 1 to 253 characters",
	})
}

// TestParseCIDR has the cases A5, each with an error of its own.
func TestParseCIDR(t *testing.T) {
	checkParse(t, parsed(ParseCIDR), map[string]string{
		"203.0.113.0/24":                "203.0.113.0/24",
		"203.0.113.77/24":               "203.0.113.0/24",
		"203.0.113.7":                   "203.0.113.7/32",
		"0.0.0.0/0":                     "0.0.0.0/0",
		"255.255.255.255/32":            "255.255.255.255/32",
		"203.0.113.0/24:443":            "203.0.113.0/24:443",
		"203.0.113.0/24:8000-8999":      "203.0.113.0/24:8000-8999",
		"203.0.113.0/24:443-443":        "203.0.113.0/24:443",
		"203.0.113.0/24/TCP":            "203.0.113.0/24/tcp",
		"203.0.113.7:53/udp":            "203.0.113.7/32:53/udp",
		"":                              "error: expected a.b.c.d/n",
		"10.0.0/8":                      "error: expected a.b.c.d/n",
		"10.0.0.0.0/8":                  "error: expected a.b.c.d/n",
		"ten.0.0.0/8":                   "error: expected a.b.c.d/n",
		"010.0.0.0/8":                   "error: expected a.b.c.d/n",
		"0x0a.0.0.0/8":                  "error: expected a.b.c.d/n",
		"-1.0.0.0/8":                    "error: expected a.b.c.d/n",
		"10.0.0.0/":                     "error: expected a.b.c.d/n",
		"10.0.0.0/08":                   "error: expected a.b.c.d/n",
		"10.0.0.0/+8":                   "error: expected a.b.c.d/n",
		"10.0.0.0/8 ":                   "error: expected a.b.c.d/n",
		"10.0.0.0/8/icmp":               "error: expected a.b.c.d/n",
		"256.0.0.0/8":                   "error: invalid IP octet 256",
		"10.0.0.0/33":                   "error: invalid prefix length 33",
		"2001:db8::/32":                 "error: only IPv4",
		"::/0":                          "error: only IPv4",
		"10.0.0.0/8:0":                  "error: invalid port",
		"10.0.0.0/8:65536":              "error: invalid port",
		"10.0.0.0/8:http":               "error: invalid port",
		"10.0.0.0/8:":                   "error: invalid port",
		"10.0.0.0/8:1-":                 "error: invalid port",
		"10.0.0.0/8:90-80":              "error: backwards",
		"10.0.0.0/8:1-2-3":              "error: invalid port",
		"/udp":                          "error: expected a.b.c.d/n",
		"10.0.0.0/99999999999999999999": "error: expected a.b.c.d/n",
	})
}

// TestParsePublication has the cases A3.
func TestParsePublication(t *testing.T) {
	checkParse(t, parsed(ParsePublication), map[string]string{
		"8080":                 "127.0.0.1:8080:8080",
		"8080:80":              "127.0.0.1:8080:80",
		"0.0.0.0:8080:80":      "0.0.0.0:8080:80",
		"8080:80/tcp":          "127.0.0.1:8080:80",
		"5353:53/udp":          "127.0.0.1:5353:53/udp",
		"8080:lo":              "127.0.0.1:8080:8080:lo",
		"10.20.0.1:1:65535:lo": "10.20.0.1:1:65535:lo",
		"":                     "error: invalid port",
		"0":                    "error: invalid port",
		"-1":                   "error: invalid port",
		"+1":                   "error: invalid port",
		"65536":                "error: invalid port",
		"abc":                  "error: invalid port",
		"8080.5":               "error: invalid port",
		"0x50":                 "error: invalid port",
		"080":                  "error: invalid port",
		" 80":                  "error: invalid port",
		"8080:":                "error: invalid port",
		":80":                  "error: invalid port",
		"127.0.0.1:80":         "error: invalid port",
		"host:8080:80":         "error: not an IPv4 address",
		"[::1]:8080:80":        "error: expected [IP:]HOST:GUEST",
		"1:2:3:4":              "error: expected [IP:]HOST:GUEST",
		"8080:80:lo/udp":       "error: :lo is for TCP",
		"8080:80/sctp":         "error: invalid port",
	})
}

func TestParseBandwidth(t *testing.T) {
	checkParse(t, parsed(ParseBandwidth), map[string]string{
		"10mbit":        "10mbit",
		"10Mbit":        "10mbit",
		"10m":           "10mbit",
		"10":            "10mbit",
		"10:20":         "10mbit:20mbit",
		"10mbit:10m":    "10mbit",
		"1:100000mbit":  "1mbit:100000mbit",
		"":              "error: expected megabits",
		"0":             "error: expected megabits",
		"100001":        "error: expected megabits",
		"-1":            "error: expected megabits",
		"1.5mbit":       "error: expected megabits",
		"10bit":         "error: expected megabits",
		"10kbit":        "error: expected megabits",
		"10gbit":        "error: expected megabits",
		"10mm":          "error: expected megabits",
		"10:":           "error: expected megabits",
		":10":           "error: expected megabits",
		"10:20:30":      "error: expected megabits",
		"10 mbit":       "error: expected megabits",
		"4294967296":    "error: expected megabits",
		"mbit":          "error: expected megabits",
		"10mbit:20kbit": "error: expected megabits",
	})
	if got := (Bandwidth{}).String(); got != "" {
		t.Errorf("no limit: got %q", got)
	}
}

func TestDomainMatches(t *testing.T) {
	for _, c := range []struct {
		domain, name string
		want         bool
	}{
		{"example.com", "example.com", true},
		{"example.com", "EXAMPLE.com.", true},
		{"example.com", "www.example.com", false},
		{"example.com", "notexample.com", false},
		{"example.com", "example.com.evil.org", false},
		{"example.com", "", false},
		{"*.example.com", "www.example.com", true},
		{"*.example.com", "a.b.Example.com.", true},
		{"*.example.com", "example.com", false},
		{"*.example.com", ".example.com", false},
		{"*.example.com", "notexample.com", false},
		{"*.example.com", "www.example.com.evil.org", false},
	} {
		d, err := ParseDomain(c.domain)
		if err != nil {
			t.Fatal(err)
		}
		if got := d.Matches(c.name); got != c.want {
			t.Errorf("%s matches %q: got %t", d, c.name, got)
		}
	}
}

// TestNew has the cases A7.
func TestNew(t *testing.T) {
	domain, cidr := []Domain{{Name: "example.com"}}, []CIDR{mustCIDR(t, "203.0.113.0/24")}
	for _, c := range []struct {
		mode            Mode
		domains         []Domain
		allowed, denied []CIDR
		want            Mode // "" for an error
		public          bool
	}{
		{"", nil, nil, nil, AllowAll, true},
		{AllowAll, nil, nil, nil, AllowAll, true},
		{AllowAll, domain, nil, nil, Custom, false},
		{AllowAll, nil, cidr, nil, Custom, false},
		{AllowAll, nil, nil, cidr, Custom, true},
		{"", nil, nil, cidr, Custom, true},
		{Custom, nil, cidr, cidr, Custom, false},
		{Custom, nil, nil, nil, Custom, false},
		{DenyAll, nil, nil, nil, DenyAll, false},
		{DenyAll, domain, nil, nil, "", false},
		{DenyAll, nil, cidr, nil, "", false},
		{DenyAll, nil, nil, cidr, "", false},
		{"allow", nil, nil, nil, "", false},
		{"Deny-All", nil, nil, nil, "", false},
		{"", make([]Domain, MaxRules+1), nil, nil, "", false},
		{"", nil, make([]CIDR, MaxRules+1), nil, "", false},
		{"", nil, nil, make([]CIDR, MaxRules+1), "", false},
	} {
		p, err := New(c.mode, c.domains, c.allowed, c.denied)
		if (err == nil) != (c.want != "") || p.Mode != c.want || p.Public() != c.public {
			t.Errorf("%s with %d, %d and %d rules: got %s, public %t, %v", c.mode, len(c.domains), len(c.allowed), len(c.denied), p.Mode, p.Public(), err)
		}
	}
}

func mustCIDR(t testing.TB, text string) CIDR {
	t.Helper()
	c, err := ParseCIDR(text)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// TestNewSorts makes equal policies of lists in any order.
func TestNewSorts(t *testing.T) {
	a, b := mustCIDR(t, "9.0.0.0/8"), mustCIDR(t, "10.0.0.0/8:443/tcp")
	x, y := Domain{Name: "a.example"}, Domain{Name: "b.example", Below: true, Port: 443}
	one, err := New("", []Domain{x, y}, []CIDR{a, b}, []CIDR{b, a})
	if err != nil {
		t.Fatal(err)
	}
	two, err := New(Custom, []Domain{y, x, y}, []CIDR{b, a, a, b}, []CIDR{a, b, b})
	if err != nil {
		t.Fatal(err)
	}
	prefixes := cmpopts.EquateComparable(CIDR{})
	if diff := cmp.Diff(one, two, prefixes); diff != "" {
		t.Error(diff)
	}
	raw, err := json.Marshal(one)
	if err != nil {
		t.Fatal(err)
	}
	var read Policy
	if err := json.Unmarshal(raw, &read); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(read, one, prefixes); diff != "" {
		t.Errorf("by way of %s: %s", raw, diff)
	}
}

func TestAllowsName(t *testing.T) {
	p := Policy{Mode: Custom, AllowedDomains: []Domain{
		{Name: "any.example"}, {Name: "web.example", Port: 443}, {Name: "web.example", Port: 8443}, {Name: "below.example", Below: true},
	}}
	for _, c := range []struct {
		name                   string
		port                   uint16
		lookup, allowed, named bool
	}{
		{"any.example", 1, true, true, false},
		{"web.example", 443, true, true, true},
		{"web.example", 80, true, false, false},
		{"a.below.example", 22, true, true, false},
		{"below.example", 22, false, false, false},
		{"other.example", 443, false, false, false},
	} {
		allowed, named := p.AllowsName(c.name, c.port)
		if lookup := p.AllowsLookup(c.name); lookup != c.lookup || allowed != c.allowed || named != c.named {
			t.Errorf("%s port %d: lookup %t, allowed %t, named %t", c.name, c.port, lookup, allowed, named)
		}
	}
	if !(Policy{Mode: AllowAll}).AllowsLookup("other.example") || (Policy{Mode: DenyAll}).AllowsLookup("other.example") {
		t.Error("lookups do not follow the mode")
	}
}

func TestCheckPublications(t *testing.T) {
	for list, want := range map[string]bool{
		"8080 8081":                     true,
		"8080 8080/udp":                 true,
		"127.0.0.1:80:1 10.20.0.1:80:2": true,
		"8080:1 8080:2":                 false,
		"8080:1 0.0.0.0:8080:2":         false,
		"0.0.0.0:53:1/udp 53:2/udp":     false,
	} {
		var publications []Publication
		for _, text := range strings.Fields(list) {
			p, err := ParsePublication(text)
			if err != nil {
				t.Fatal(err)
			}
			publications = append(publications, p)
		}
		if err := CheckPublications(publications); (err == nil) != want {
			t.Errorf("%s: %v", list, err)
		}
	}
}

// fuzz checks that what is read comes out of String as it went in, and that
// String is how it is written: the same when it is read again.
func fuzz[T interface {
	comparable
	fmt.Stringer
}](f *testing.F, parse func(string) (T, error), seeds ...string) {
	for _, seed := range seeds {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		value, err := parse(text)
		if err != nil {
			if len(err.Error()) > 512 {
				t.Errorf("an error of %d bytes", len(err.Error()))
			}
			return
		}
		again, err := parse(value.String())
		if err != nil || again != value || again.String() != value.String() {
			t.Errorf("%q is read as %q, and that as %q, %v", text, value, again, err)
		}
		if marshaler, ok := any(value).(encoding.TextMarshaler); ok {
			if raw, err := marshaler.MarshalText(); err != nil || string(raw) != value.String() {
				t.Errorf("%q is marshalled as %q, %v", value, raw, err)
			}
		}
	})
}

func FuzzDomain(f *testing.F) {
	fuzz(f, ParseDomain, "example.com", "*.Example.com.:443", "_a.b-c", "1.2.3.4", "*.*.x", "a.:1", "\u212a.example", "x:99999")
}

func FuzzCIDR(f *testing.F) {
	fuzz(f, ParseCIDR, "10.1.2.3/8", "10.1.2.3", "10.0.0.0/8:1-2/udp", "0.0.0.0/0:65535-65535/TCP", "1.2.3.4/33", "::/0", "1.2.3.4:5-4")
}

func FuzzPublication(f *testing.F) {
	fuzz(f, ParsePublication, "80", "8080:80", "0.0.0.0:1:2/udp", "1:2:lo", "1:2:lo/udp", "::1:1:2", "65535:65535/tcp")
}

func FuzzBandwidth(f *testing.F) {
	fuzz(f, ParseBandwidth, "10", "10m", "10mbit:20MBIT", "100000", "0", "10bit", "1:2:3")
}
