// Package config reads the config file: what the command line's flags are where
// they are not typed. It knows the file's form, and not which flags there are.
package config

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/pelletier/go-toml/v2"
	"github.com/pelletier/go-toml/v2/unstable"

	"github.com/vmsan/vmsan/api"
)

// maxFile bounds a config file, in bytes.
const maxFile = 1 << 20

// Kind is what sort of value a setting has.
type Kind string

// The kinds.
const (
	String  Kind = "a string"
	Integer Kind = "an integer"
	Boolean Kind = "a boolean"
	List    Kind = "a list of strings"
)

// Setting is a value in the file.
type Setting struct {
	// Command is the command whose flag it is, words with a space between, or
	// empty for what is in no table.
	Command string
	// Key is the flag, without dashes.
	Key  string
	Kind Kind
	// Values has one value, or the elements of a list.
	Values []string
	Line   int
}

// File is a config file that was read.
type File struct {
	Path     string
	Settings []Setting
}

// At says where in the file a line is.
func (f File) At(line int) string { return fmt.Sprintf("%s:%d", f.Path, line) }

// Errorf is an error about a line.
func (f File) Errorf(line int, format string, args ...any) *api.Error {
	return api.Errorf(api.ErrConfig, "%s: %w", f.At(line), fmt.Errorf(format, args...))
}

// Load reads the file at path.
func Load(path string) (File, error) {
	file, err := os.Open(path)
	if err != nil {
		return File{}, api.Errorf(api.ErrConfig, "read config: %w", err)
	}
	defer file.Close()
	data, err := io.ReadAll(io.LimitReader(file, maxFile+1))
	if err != nil {
		return File{}, api.Errorf(api.ErrConfig, "read config: %w", err)
	}
	if len(data) > maxFile {
		return File{}, api.Errorf(api.ErrConfig, "read config %s: it is larger than %d bytes", path, maxFile)
	}
	return Parse(path, data)
}

// Parse reads what is in the file at path.
func Parse(path string, data []byte) (File, error) {
	f := File{Path: path}
	// First what the parser below does not look at, such as keys that are there
	// twice.
	var whole map[string]any
	if err := toml.Unmarshal(data, &whole); err != nil {
		line := 1
		var wrong *toml.DecodeError
		if errors.As(err, &wrong) {
			line, _ = wrong.Position()
		}
		return f, f.Errorf(line, "%s", strings.TrimPrefix(err.Error(), "toml: "))
	}
	r := reader{file: &f}
	r.parser.Reset(data)
	var table []string
	for r.parser.NextExpression() {
		e := r.parser.Expression()
		switch e.Kind {
		case unstable.Table:
			table, _ = r.key(e)
		case unstable.KeyValue:
			if err := r.value(table, e); err != nil {
				return f, err
			}
		default:
			_, line := r.key(e)
			return f, f.Errorf(line, "a list of tables, which no command takes")
		}
	}
	return f, r.parser.Error()
}

type reader struct {
	file   *File
	parser unstable.Parser
}

// key returns the parts of a key, and its line.
func (r *reader) key(e *unstable.Node) (parts []string, line int) {
	for it := e.Key(); it.Next(); {
		part := it.Node()
		if line == 0 {
			line = r.parser.Shape(part.Raw).Start.Line
		}
		parts = append(parts, string(part.Data))
	}
	return parts, line
}

// value takes down a value. Tables can be written in all of TOML's ways.
func (r *reader) value(table []string, e *unstable.Node) error {
	key, line := r.key(e)
	path := append(append([]string(nil), table...), key...)
	value := e.Value()
	if value.Kind == unstable.InlineTable {
		for it := value.Children(); it.Next(); {
			if err := r.value(path, it.Node()); err != nil {
				return err
			}
		}
		return nil
	}
	last := len(path) - 1
	s := Setting{Command: strings.Join(path[:last], " "), Key: path[last], Line: line}
	var err error
	if s.Kind, s.Values, err = scalar(value); err != nil {
		return r.file.Errorf(line, "%s is %w", s.Key, err)
	}
	r.file.Settings = append(r.file.Settings, s)
	return nil
}

// scalar is a value that a flag can have.
func scalar(value *unstable.Node) (kind Kind, values []string, err error) {
	switch value.Kind {
	case unstable.String:
		return String, []string{string(value.Data)}, nil
	case unstable.Integer:
		return Integer, []string{strings.ReplaceAll(string(value.Data), "_", "")}, nil
	case unstable.Bool:
		return Boolean, []string{string(value.Data)}, nil
	case unstable.Array:
		for it := value.Children(); it.Next(); {
			if it.Node().Kind == unstable.Comment {
				continue
			}
			if it.Node().Kind != unstable.String {
				return List, nil, errors.New("a list of other things than strings")
			}
			values = append(values, string(it.Node().Data))
		}
		return List, values, nil
	}
	return "", nil, errors.New("neither a string, an integer, a boolean nor a list of strings")
}
