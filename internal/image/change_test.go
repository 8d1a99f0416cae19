package image

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/vmsan/vmsan/api"
)

func TestChange(t *testing.T) {
	base := Config{
		Env: []string{"PATH=/bin", "A=a"}, Workdir: "/srv", Entrypoint: []string{"/old"}, Cmd: []string{"old"},
		Labels: map[string]string{"k": "v"}, Exposed: []string{"80/tcp"},
	}
	for _, c := range []struct {
		lines []string
		want  func(c *Config)
	}{
		{nil, func(*Config) {}},
		{[]string{"ENV A=b"}, func(c *Config) { c.Env = []string{"PATH=/bin", "A=b"} }},
		{[]string{`ENV B="two words" C=\$x D='$A' PATH=/opt:$PATH`}, func(c *Config) {
			c.Env = []string{"PATH=/opt:/bin", "A=a", "B=two words", "C=$x", "D=$A"}
		}},
		{[]string{"env  B  the rest of $A "}, func(c *Config) { c.Env = append(c.Env, "B=the rest of $A") }},
		{[]string{`ENV B=${A}b$`, `ENV C=$B$none`}, func(c *Config) { c.Env = append(c.Env, "B=ab$", "C=ab$") }},
		{[]string{`CMD ["a", "b c"]`}, func(c *Config) { c.Cmd = []string{"a", "b c"} }},
		{[]string{"CMD a | b"}, func(c *Config) { c.Cmd = []string{"/bin/sh", "-c", "a | b"} }},
		{[]string{"CMD []"}, func(c *Config) { c.Cmd = nil }},
		{[]string{`ENTRYPOINT ["/new"]`}, func(c *Config) { c.Entrypoint, c.Cmd = []string{"/new"}, nil }},
		{[]string{`CMD ["x"]`, `ENTRYPOINT ["/new"]`}, func(c *Config) { c.Entrypoint, c.Cmd = []string{"/new"}, []string{"x"} }},
		{[]string{"WORKDIR app/../lib"}, func(c *Config) { c.Workdir = "/srv/lib" }},
		{[]string{`WORKDIR "/a b"`}, func(c *Config) { c.Workdir = "/a b" }},
		{[]string{"USER 1000:app"}, func(c *Config) { c.User = "1000:app" }},
		{[]string{"EXPOSE 53/udp 443 80"}, func(c *Config) { c.Exposed = []string{"443/tcp", "53/udp", "80/tcp"} }},
		{[]string{`LABEL "a b"=c k=`}, func(c *Config) { c.Labels = map[string]string{"k": "", "a b": "c"} }},
		{[]string{"STOPSIGNAL SIGINT"}, func(c *Config) { c.StopSignal = "SIGINT" }},
	} {
		want, _ := base.Change(nil)
		c.want(&want)
		got, err := base.Change(c.lines)
		if err != nil {
			t.Errorf("%q: %v", c.lines, err)
			continue
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%q (-want +got):\n%s", c.lines, diff)
		}
	}
	if diff := cmp.Diff([]string{"PATH=/bin", "A=a"}, base.Env); diff != "" || base.Labels["k"] != "v" {
		t.Errorf("the configuration that was changed is another:\n%s", diff)
	}
	if _, err := (Config{}).Change([]string{"LABEL a=b"}); err != nil {
		t.Error(err)
	}
}

func TestChangeRefuses(t *testing.T) {
	for _, line := range []string{
		"", "ENV", "RUN x", "ONBUILD ENV A=b", "ENV A", "ENV A=b c", `ENV A="b`, "ENV =b", "ENV A=${B:-c}", "ENV A=" + strings.Repeat("x", maxConfigEnv),
		"WORKDIR a b", `WORKDIR ""`, "USER a b", "USER a;b", "EXPOSE 80-90", "EXPOSE x", "LABEL a", "STOPSIGNAL x y", "STOPSIGNAL what", "CMD a\x00b",
	} {
		if got, err := (Config{}).Change([]string{line}); !api.HasCode(err, api.ErrValidationChoice) || api.AsError(err).Flag != "--change" {
			t.Errorf("%.40q: got %.100v, error %v", line, got, err)
		}
	}
}

func FuzzChange(f *testing.F) {
	for _, line := range []string{`ENV A="b c" D=${A}`, `CMD ["a"]`, `LABEL 'a'=\b`, "WORKDIR ../x", "EXPOSE 80"} {
		f.Add(line)
	}
	f.Fuzz(func(t *testing.T, line string) {
		c, err := (Config{Env: []string{"A=a"}}).Change([]string{line})
		if err != nil {
			return
		}
		if err := c.check(); err != nil {
			t.Errorf("made of %q what is no configuration: %v", line, err)
		}
	})
}
