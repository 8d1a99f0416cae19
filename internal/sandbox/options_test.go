package sandbox

import (
	"strings"
	"testing"
	"time"

	"github.com/vmsan/vmsan/api"
)

// refused checks that err has code, and names the flag and the value.
func refused(t *testing.T, err error, code api.Code, flag, value string) {
	t.Helper()
	e := api.AsError(orNone(err))
	if e.Code != code || e.Flag != flag || !strings.Contains(e.Message, flag) || !strings.Contains(e.Message, value) {
		t.Errorf("%s %q is answered with %s (%s): %s", flag, value, e.Code, e.Flag, e.Message)
	}
}

func orNone(err error) error {
	if err == nil {
		return api.Errorf("NONE", "no error")
	}
	return err
}

// A1.
func TestParseVCPUs(t *testing.T) {
	for text, want := range map[string]int{"1": 1, "2": 2, "32": 32} {
		if got, err := ParseVCPUs(text); got != want || err != nil {
			t.Errorf("ParseVCPUs(%q) = %d, %v", text, got, err)
		}
	}
	for _, text := range []string{"0", "33", "-1", "+1", "", "1e1", " 2 ", "1.5", "0x2", "99999999999999999999"} {
		_, err := ParseVCPUs(text)
		refused(t, err, api.ErrValidationInteger, "--vcpus", text)
	}
}

// A1.
func TestParseMemory(t *testing.T) {
	for text, want := range map[string]int{
		"64": 64, "128": 128, "512m": 512, "512M": 512, "512MiB": 512, "2g": 2048, "2GB": 2048, "131072k": 128,
		"1048576": 1 << 20, "1t": 1 << 20, "134217728b": 128,
	} {
		if got, err := ParseMemory(text); got != want || err != nil {
			t.Errorf("ParseMemory(%q) = %d, %v", text, got, err)
		}
	}
	for _, text := range []string{
		"", "0", "63", "63m", "1048577", "2t", "-128", "+128", "1.5g", " 128", "128 m", "m", "128mm", "1000k", "65537k",
		"999999999999999g", "9999999999999999999", "128m\n", "0x80",
	} {
		_, err := ParseMemory(text)
		refused(t, err, api.ErrValidationMemory, "--memory", strings.TrimSuffix(text, "\n"))
	}
}

// A1.
func TestParseDisk(t *testing.T) {
	for text, want := range map[string]int64{
		"1": 1 << 30, "10": 10 << 30, "1024": 1 << 40, "10gb": 10 << 30, "10g": 10 << 30, "10GiB": 10 << 30,
		"16m": 16 << 20, "512m": 512 << 20, "16t": 16 << 40,
	} {
		if got, err := ParseDisk("--disk", text); got != want || err != nil {
			t.Errorf("ParseDisk(%q) = %d, %v", text, got, err)
		}
	}
	for _, text := range []string{"", "0", "15m", "17t", "16385", "-1", "10xb", "1.5g", "16777217b", "gb", "10 gb"} {
		_, err := ParseDisk("--disk", text)
		refused(t, err, api.ErrValidationDiskSize, "--disk", text)
	}
}

func TestParseDiskLimits(t *testing.T) {
	for text, want := range map[string]int64{"1": 1 << 20, "50": 50 << 20, "50m": 50 << 20, "2gb": 2 << 30, "1t": 1 << 40} {
		if got, err := ParseDiskRate(text); got != want || err != nil {
			t.Errorf("ParseDiskRate(%q) = %d, %v", text, got, err)
		}
	}
	for _, text := range []string{"", "0", "0m", "1023k", "2t", "-1", "50mbit", "1.5g"} {
		_, err := ParseDiskRate(text)
		refused(t, err, api.ErrValidationDiskSize, "--disk-rate", text)
	}
	for text, want := range map[string]int64{"10": 10, "1000": 1000, "10000000": 10_000_000} {
		if got, err := ParseDiskIOPS(text); got != want || err != nil {
			t.Errorf("ParseDiskIOPS(%q) = %d, %v", text, got, err)
		}
	}
	for _, text := range []string{"", "0", "9", "10000001", "-10", "+10", "1e3", "99999999999999999999"} {
		_, err := ParseDiskIOPS(text)
		refused(t, err, api.ErrValidationInteger, "--disk-iops", text)
	}
}

// A2, except that a bare number is seconds: minutes are for time limits of
// sandboxes.
func TestParseDuration(t *testing.T) {
	for text, want := range map[string]time.Duration{
		"0": 0, "15": 15 * time.Second, "30s": 30 * time.Second, "5m": 5 * time.Minute, "2h": 2 * time.Hour,
		"1d": 24 * time.Hour, "1h30m": 90 * time.Minute, "1d12h": 36 * time.Hour,
		"2h30m15s": 2*time.Hour + 30*time.Minute + 15*time.Second, "1H30M": 90 * time.Minute, "500ms": 500 * time.Millisecond,
		"1s500ms": 1500 * time.Millisecond, "99999d": 99999 * 24 * time.Hour,
	} {
		if got, err := ParseDuration("--timeout", text); got != want || err != nil {
			t.Errorf("ParseDuration(%q) = %v, %v", text, got, err)
		}
	}
	for _, text := range []string{
		"", "abc", "1.5h", "-5", "-5s", "+5s", "10x5s", "5s1h", "1h1h", " 5s", "5 s", "s", "9999999999", "100000d", "1h30",
	} {
		_, err := ParseDuration("--timeout", text)
		refused(t, err, api.ErrValidationDuration, "--timeout", text)
	}
}

func FuzzParseDuration(f *testing.F) {
	for _, text := range []string{"15", "1d2h3m4s5ms", "abc"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		if d, err := ParseDuration("--timeout", text); err == nil && d < 0 {
			t.Errorf("ParseDuration(%q) = %v", text, d)
		}
	})
}

func TestDefaults(t *testing.T) {
	var o CreateOptions
	if err := o.complete(); err != nil {
		t.Fatal(err)
	}
	if o.VCPUs != DefaultVCPUs || o.MemoryMiB != DefaultMemoryMiB || o.DiskBytes != DefaultDisk || o.Driver != "auto" ||
		o.Accelerator != "auto" || o.BootTimeout != DefaultBootTimeout {
		t.Errorf("the defaults are %+v", o)
	}
}

func TestOptionsAccepted(t *testing.T) {
	long := strings.Repeat("a", 63)
	for _, o := range []CreateOptions{
		{Name: "a"}, {Name: long}, {Name: "Web-1.front_end"}, {Name: "vm012345678"}, {Name: "0"},
		{Project: "team/web"},
		{Labels: map[string]string{"a": "", "b.c/d-e_f": "x y:z@1+2"}},
		{Env: map[string]string{"_A1": "any\nthing=", "B": ""}},
		{Workdir: "/"}, {Workdir: "/a b/../c"},
		{User: "root"}, {User: "1000"}, {User: "www-data:adm"}, {User: "0:0"},
		{RequireKVM: true, Accelerator: "kvm"},
		{BootTimeout: time.Second}, {BootTimeout: time.Hour},
	} {
		if err := o.Check(); err != nil {
			t.Errorf("%+v: %v", o, err)
		}
	}
}

// A8, N9: what is refused before anything is made.
func TestOptionsRefused(t *testing.T) {
	many := map[string]string{}
	for i := range maxLabels + 1 {
		many["l"+strings.Repeat("x", i)] = ""
	}
	for _, test := range []struct {
		o     CreateOptions
		code  api.Code
		flag  string
		value string
	}{
		{CreateOptions{VCPUs: -1}, api.ErrValidationInteger, "--vcpus", "-1"},
		{CreateOptions{VCPUs: 33}, api.ErrValidationInteger, "--vcpus", "33"},
		{CreateOptions{MemoryMiB: 63}, api.ErrValidationInteger, "--memory", "63"},
		{CreateOptions{DiskBytes: MinDisk + 1}, api.ErrValidationDiskSize, "--disk", "16777217"},
		{CreateOptions{Name: ".."}, api.ErrValidationName, "--name", ".."},
		{CreateOptions{Name: "../x"}, api.ErrValidationName, "--name", "../x"},
		{CreateOptions{Name: "a/b"}, api.ErrValidationName, "--name", "a/b"},
		{CreateOptions{Name: "a\nb"}, api.ErrValidationName, "--name", `a\nb`},
		{CreateOptions{Name: "a\n"}, api.ErrValidationName, "--name", `a\n`},
		{CreateOptions{Name: "$(id)"}, api.ErrValidationName, "--name", "$(id)"},
		{CreateOptions{Name: "-a"}, api.ErrValidationName, "--name", "-a"},
		{CreateOptions{Name: "é"}, api.ErrValidationName, "--name", "é"},
		{CreateOptions{Name: strings.Repeat("a", 64)}, api.ErrValidationName, "--name", "aaaa"},
		{CreateOptions{Name: "vm0123456789"}, api.ErrValidationName, "--name", "form of an id"},
		{CreateOptions{Project: "a b"}, api.ErrValidationLabel, "--project", "a b"},
		{CreateOptions{Labels: map[string]string{"a b": "c"}}, api.ErrValidationLabel, "--label", "a b=c"},
		{CreateOptions{Labels: map[string]string{"a": "\n"}}, api.ErrValidationLabel, "--label", `a=\n`},
		{CreateOptions{Labels: map[string]string{"a": strings.Repeat("x", 257)}}, api.ErrValidationLabel, "--label", "a=xxx"},
		{CreateOptions{Labels: many}, api.ErrValidationLabel, "--label", "65"},
		{CreateOptions{Env: map[string]string{"1A": "x"}}, api.ErrValidationEnv, "--env", "1A"},
		{CreateOptions{Env: map[string]string{"A": "\x00"}}, api.ErrValidationEnv, "--env", "A"},
		{CreateOptions{Env: map[string]string{"A": strings.Repeat("x", maxEnv)}}, api.ErrValidationEnv, "--env", "65539"},
		{CreateOptions{Workdir: "a"}, api.ErrValidationPath, "--workdir", "a"},
		{CreateOptions{Workdir: "/a\x00"}, api.ErrValidationPath, "--workdir", `/a\x00`},
		{CreateOptions{User: "../x"}, api.ErrValidationUser, "--user", "../x"},
		{CreateOptions{User: "a:b:c"}, api.ErrValidationUser, "--user", "a:b:c"},
		{CreateOptions{Driver: "vbox"}, api.ErrValidationChoice, "--driver", "vbox"},
		{CreateOptions{Accelerator: "hvf"}, api.ErrValidationChoice, "--accel", "hvf"},
		{CreateOptions{Network: "bridge"}, api.ErrValidationChoice, "--network", "bridge"},
		{CreateOptions{BootTimeout: time.Millisecond}, api.ErrValidationDuration, "--boot-timeout", "1ms"},
		{CreateOptions{BootTimeout: 2 * time.Hour}, api.ErrValidationDuration, "--boot-timeout", "2h"},
		{CreateOptions{RequireKVM: true, Accelerator: "tcg"}, api.ErrValidationFlags, "--require-kvm", "tcg"},
	} {
		refused(t, test.o.Check(), test.code, test.flag, test.value)
	}
}

func TestParsePairs(t *testing.T) {
	malformed := func(arg string) error { return api.Errorf(api.ErrValidationEnv, "%s", arg) }
	got, err := ParsePairs([]string{"A=b=c", "B=", "A=d"}, malformed)
	if err != nil || len(got) != 2 || got["A"] != "d" || got["B"] != "" {
		t.Errorf("got %v, %v", got, err)
	}
	for _, arg := range []string{"", "A", "=b"} {
		if _, err := ParsePairs([]string{arg}, malformed); !api.HasCode(err, api.ErrValidationEnv) {
			t.Errorf("%q: %v", arg, err)
		}
	}
}

func TestSignalNumber(t *testing.T) {
	for name, want := range map[string]int{
		"": 0, "15": 15, "SIGTERM": 15, "INT": 2, "SIGRTMIN+3": 37, "RTMIN": 34, "SIGRTMIN+99": 0, "SIGBOGUS": 0, "99": 0,
	} {
		if got := signalNumber(name); got != want {
			t.Errorf("%q: got %d, want %d", name, got, want)
		}
	}
}

func TestRestart(t *testing.T) {
	for _, good := range []string{"", "no", "always", "on-failure", "on-failure:3"} {
		if err := (CreateOptions{Entrypoint: true, Restart: good}).Check(); err != nil {
			t.Errorf("%q: %v", good, err)
		}
	}
	for _, bad := range []string{"yes", "on-failure:0", "on-failure:", "always:3", "on-failure:-1"} {
		if err := (CreateOptions{Entrypoint: true, Restart: bad}).Check(); !api.HasCode(err, api.ErrValidationChoice) {
			t.Errorf("%q: got error %v, want ErrValidationChoice", bad, err)
		}
	}
	if err := (CreateOptions{Restart: "always"}).Check(); err != nil {
		t.Errorf("with the host: %v", err)
	}
	if err := (CreateOptions{Restart: "on-failure"}).Check(); !api.HasCode(err, api.ErrValidationFlags) {
		t.Errorf("without a main process: got error %v, want ErrValidationFlags", err)
	}
}
