package image

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"path"
	"regexp"
	"slices"
	"strings"

	"github.com/vmsan/vmsan/api"
)

// changes are the instructions of a Dockerfile that change a configuration.
var changes = map[string]func(c *changing, rest string) error{
	"CMD":        (*changing).cmd,
	"ENTRYPOINT": (*changing).entrypoint,
	"ENV":        (*changing).env,
	"EXPOSE":     (*changing).expose,
	"LABEL":      (*changing).label,
	"STOPSIGNAL": (*changing).stopSignal,
	"USER":       (*changing).user,
	"WORKDIR":    (*changing).workdir,
}

// changing is a configuration that is being changed.
type changing struct {
	Config
	cmdSet bool // by an instruction
}

// Change returns the configuration as instructions of a Dockerfile change it,
// such as "ENV A=b" or `CMD ["server", "-v"]`.
func (c Config) Change(instructions []string) (Config, error) {
	next := changing{Config: c}
	next.Env, next.Exposed, next.Labels = slices.Clone(c.Env), slices.Clone(c.Exposed), maps.Clone(c.Labels)
	for _, line := range instructions {
		if err := next.apply(line); err != nil {
			return c, api.Errorf(api.ErrValidationChoice, "Invalid --change: %.200q: %w", line, err).WithFlag("--change")
		}
	}
	if err := next.check(); err != nil {
		return c, api.Errorf(api.ErrValidationChoice, "Invalid --change: %w", err).WithFlag("--change")
	}
	return next.Config, nil
}

func (c *changing) apply(line string) error {
	word, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
	apply := changes[strings.ToUpper(word)]
	if apply == nil {
		return fmt.Errorf("must begin with one of %s", strings.Join(slices.Sorted(maps.Keys(changes)), ", "))
	}
	if rest = strings.TrimSpace(rest); rest == "" {
		return errors.New("there is nothing behind it")
	}
	return apply(c, rest)
}

// command is a list in JSON, or a line for the shell.
func command(rest string) []string {
	var list []string
	if strings.HasPrefix(rest, "[") && json.Unmarshal([]byte(rest), &list) == nil {
		return append([]string(nil), list...) // none is nil
	}
	return []string{"/bin/sh", "-c", rest}
}

func (c *changing) cmd(rest string) error {
	c.Cmd, c.cmdSet = command(rest), true
	return nil
}

// entrypoint takes away the command that went with the entrypoint before.
func (c *changing) entrypoint(rest string) error {
	if c.Entrypoint = command(rest); !c.cmdSet {
		c.Cmd = nil
	}
	return nil
}

func (c *changing) env(rest string) error {
	return c.pairs(rest, func(key, value string) {
		entry := key + "=" + value
		i := slices.IndexFunc(c.Env, func(e string) bool { return strings.HasPrefix(e, key+"=") })
		if i < 0 {
			c.Env = append(c.Env, entry)
		} else {
			c.Env[i] = entry
		}
	})
}

func (c *changing) label(rest string) error {
	return c.pairs(rest, func(key, value string) {
		if c.Labels == nil {
			c.Labels = make(map[string]string)
		}
		c.Labels[key] = value
	})
}

// pairs are KEY=VALUE..., or one "KEY VALUE" of which the value is the rest of
// the line.
func (c *changing) pairs(rest string, set func(key, value string)) error {
	words, err := c.words(rest)
	if err != nil || !strings.Contains(words[0], "=") {
		key, value, _ := strings.Cut(rest, " ")
		if value = strings.TrimSpace(value); value == "" || strings.Contains(key, "=") {
			return cmp.Or(err, errors.New("must be KEY=VALUE"))
		}
		set(key, value)
		return nil
	}
	for _, word := range words {
		key, value, ok := strings.Cut(word, "=")
		if !ok || key == "" {
			return fmt.Errorf("%.80q is not KEY=VALUE", word)
		}
		set(key, value)
	}
	return nil
}

var portForm = regexp.MustCompile(`^[0-9]{1,5}(/(tcp|udp|sctp))?$`)

func (c *changing) expose(rest string) error {
	words, err := c.words(rest)
	if err != nil {
		return err
	}
	for _, port := range words {
		if !portForm.MatchString(port) {
			return fmt.Errorf("%.80q is no port such as 80 or 53/udp", port)
		}
		if !strings.Contains(port, "/") {
			port += "/tcp"
		}
		if !slices.Contains(c.Exposed, port) {
			c.Exposed = append(c.Exposed, port)
		}
	}
	slices.Sort(c.Exposed)
	return nil
}

func (c *changing) stopSignal(rest string) (err error) {
	c.StopSignal, err = c.word(rest)
	return err
}

func (c *changing) user(rest string) (err error) {
	c.User, err = c.word(rest)
	return err
}

// workdir counts from the one before.
func (c *changing) workdir(rest string) error {
	dir, err := c.word(rest)
	if err != nil {
		return err
	}
	if !path.IsAbs(dir) {
		dir = path.Join("/", c.Workdir, dir)
	}
	c.Workdir = path.Clean(dir)
	return nil
}

func (c *changing) word(rest string) (string, error) {
	words, err := c.words(rest)
	if err != nil {
		return "", err
	}
	if len(words) != 1 || words[0] == "" {
		return "", errors.New("must have one word behind it")
	}
	return words[0], nil
}

// words splits a line as a shell does, with quotes, backslashes, and $NAME and
// ${NAME} for what is in the environment.
func (c *changing) words(line string) (words []string, err error) {
	s := splitter{rest: line, env: c.Env}
	for s.rest = strings.TrimLeft(s.rest, " \t"); s.rest != ""; s.rest = strings.TrimLeft(s.rest, " \t") {
		word, err := s.word()
		if err != nil {
			return nil, err
		}
		words = append(words, word)
	}
	return words, nil
}

// splitter takes words off the beginning of a line.
type splitter struct {
	rest string
	env  []string
}

func (s *splitter) word() (string, error) {
	var word strings.Builder
	quote := byte(0)
	for s.rest != "" {
		c := s.rest[0]
		if quote == 0 && (c == ' ' || c == '\t') {
			break
		}
		s.rest = s.rest[1:]
		switch {
		case quote == 0 && (c == '\'' || c == '"'):
			quote = c
		case c == quote:
			quote = 0
		case c == '\\' && quote != '\'' && s.rest != "" && (quote == 0 || strings.ContainsRune(`"\$`, rune(s.rest[0]))):
			word.WriteByte(s.rest[0])
			s.rest = s.rest[1:]
		case c == '$' && quote != '\'':
			value, err := s.variable()
			if err != nil {
				return "", err
			}
			word.WriteString(value)
		default:
			word.WriteByte(c)
		}
		if word.Len() > maxConfigWords {
			return "", errors.New("it is too long")
		}
	}
	if quote != 0 {
		return "", fmt.Errorf("the quote %c is not closed", quote)
	}
	return word.String(), nil
}

var variableForm = regexp.MustCompile(`^(\{[A-Za-z_][A-Za-z0-9_]*\}|[A-Za-z_][A-Za-z0-9_]*)`)

// variable takes a name off, behind its dollar sign.
func (s *splitter) variable() (string, error) {
	found := variableForm.FindString(s.rest)
	if found == "" {
		if strings.HasPrefix(s.rest, "{") {
			return "", errors.New("of variables there are $NAME and ${NAME} alone")
		}
		return "$", nil
	}
	s.rest = s.rest[len(found):]
	name := strings.Trim(found, "{}")
	for _, e := range s.env {
		if value, ok := strings.CutPrefix(e, name+"="); ok {
			return value, nil
		}
	}
	return "", nil
}
