package cli

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/vmsan/vmsan/api"
	"github.com/vmsan/vmsan/internal/config"
)

// Flags that were not typed are as variables of the environment say, or else the
// config file: first the table of the command, then what is in no table. That is
// for the flags that all commands have, and those that describe a new sandbox.
// Such a flag does not count as typed: it gives way to what is.

// describes marks the flags that describe a new sandbox.
const describes = "describes-sandbox"

// markSandboxFlags marks all flags that cmd has so far.
func markSandboxFlags(cmd *cobra.Command) {
	cmd.Flags().VisitAll(func(f *pflag.Flag) { cmd.Flags().SetAnnotation(f.Name, describes, nil) })
}

// alternatives are flags of which one takes the place of the others.
var alternatives = [][]string{
	{"image", "from-image", "runtime", "rootfs"},
	{"network-policy", "allowed-domain", "allowed-cidr", "denied-cidr"},
	{"quiet", "verbose"},
}

// networkOnly are flags that say nothing of a sandbox without a network.
var networkOnly = []string{"network-policy", "allowed-domain", "allowed-cidr", "denied-cidr", "publish", "publish-port", "dns", "bandwidth"}

// never are flags that are for one command line: what is in force cannot be
// about finding itself, or about nobody's sandbox in particular.
var never = []string{"config", "help", "version"}

func configurable(f *pflag.Flag) bool { return !f.Hidden && !slices.Contains(never, f.Name) }

// general tells whether a flag has a variable, and may stand in no table.
func general(cmd *cobra.Command, f *pflag.Flag) bool {
	_, sandbox := f.Annotations[describes]
	return configurable(f) && (sandbox || cmd.Root().PersistentFlags().Lookup(f.Name) == f)
}

// variable is the name of a flag's variable.
func variable(flag string) string {
	return "VMSAN_" + strings.ToUpper(strings.ReplaceAll(flag, "-", "_"))
}

// applySettings has the flags of cmd that were not typed be as they are set.
func (a *app) applySettings(cmd *cobra.Command) error {
	file, err := a.configFile(cmd)
	if err != nil {
		return err
	}
	if err := checkSettings(cmd.Root(), file); err != nil {
		return err
	}
	a.sources = map[string]string{}
	s := settings{app: a, cmd: cmd, taken: map[string]bool{}}
	cmd.Flags().VisitAll(func(f *pflag.Flag) {
		if f.Changed {
			s.taken[f.Name] = true
		}
	})
	return errors.Join(s.fromVariables(), s.fromFile(file, commandName(cmd)), s.fromFile(file, ""))
}

// configFile reads the config file: that of --config, or of the user if there
// is one.
func (a *app) configFile(cmd *cobra.Command) (config.File, error) {
	path := a.config
	if path == "" && !cmd.Flags().Changed("config") {
		path = os.Getenv(variable("config"))
	}
	if path != "" || cmd.Flags().Changed("config") {
		return config.Load(path)
	}
	path, err := defaultConfig()
	if err != nil {
		return config.File{}, err
	}
	file, err := config.Load(path)
	if errors.Is(err, fs.ErrNotExist) {
		return config.File{Path: path}, nil
	}
	return file, err
}

// defaultConfig is where the config file is looked for.
func defaultConfig() (string, error) {
	if os.Geteuid() == 0 {
		return "/etc/vmsan/config.toml", nil
	}
	if dir := os.Getenv("XDG_CONFIG_HOME"); filepath.IsAbs(dir) {
		return filepath.Join(dir, "vmsan", "config.toml"), nil
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return os.DevNull, nil // nobody without a home has one
	}
	return filepath.Join(home, ".config", "vmsan", "config.toml"), nil
}

// commandName is what a command is called behind vmsan.
func commandName(cmd *cobra.Command) string {
	return strings.TrimPrefix(strings.TrimPrefix(cmd.CommandPath(), cmd.Root().Name()), " ")
}

// checkSettings checks all of a file, whichever command was called: that there
// are such flags, and that they take such values.
func checkSettings(root *cobra.Command, file config.File) error {
	create, _, err := root.Find([]string{"create"})
	if err != nil {
		return err
	}
	for _, s := range file.Settings {
		cmd, belongs := create, general
		if s.Command != "" {
			belongs = func(_ *cobra.Command, f *pflag.Flag) bool { return configurable(f) }
			if cmd = findCommand(root, s.Command); cmd == nil {
				return unknown(file, s.Line, "command", s.Command, commandNames(root))
			}
		}
		flags := flagsOf(cmd, belongs)
		flag, ok := flags[s.Key]
		if !ok {
			return unknown(file, s.Line, "setting", s.Key, names(flags))
		}
		if err := checkKind(flag, s); err != nil {
			return file.Errorf(s.Line, "%w", err).WithHint("vmsan %s --help", commandName(cmd))
		}
	}
	return nil
}

func findCommand(root *cobra.Command, name string) *cobra.Command {
	cmd, rest, err := root.Find(strings.Fields(name))
	if err != nil || len(rest) > 0 || cmd == root || commandName(cmd) != name {
		return nil
	}
	return cmd
}

func commandNames(parent *cobra.Command) (all []string) {
	for _, cmd := range parent.Commands() {
		if !cmd.Hidden {
			all = append(append(all, commandName(cmd)), commandNames(cmd)...)
		}
	}
	return all
}

// flagsOf are the flags of a command that belong, by name.
func flagsOf(cmd *cobra.Command, belongs func(*cobra.Command, *pflag.Flag) bool) map[string]*pflag.Flag {
	flags := map[string]*pflag.Flag{}
	for _, set := range []*pflag.FlagSet{cmd.InheritedFlags(), cmd.LocalFlags()} {
		set.VisitAll(func(f *pflag.Flag) {
			if belongs(cmd, f) {
				flags[f.Name] = f
			}
		})
	}
	return flags
}

func names(flags map[string]*pflag.Flag) (all []string) {
	for name := range flags {
		all = append(all, name)
	}
	slices.Sort(all)
	return all
}

func unknown(file config.File, line int, what, name string, known []string) error {
	err := file.Errorf(line, "there is no %s %.80q", what, name)
	if near := nearest(name, known); near != "" {
		return err.WithHint("did you mean %s?", near)
	}
	return err.WithHint("vmsan config shows all settings")
}

// checkKind checks that a flag takes values of the kind that it was given.
func checkKind(flag *pflag.Flag, s config.Setting) error {
	wants := []config.Kind{config.String, config.Integer}
	switch kind := flag.Value.Type(); {
	case kind == "bool":
		wants = []config.Kind{config.Boolean}
	case isList(flag):
		wants = []config.Kind{config.List, config.String}
	case kind != "string":
		wants = []config.Kind{config.Integer}
	}
	if !slices.Contains(wants, s.Kind) {
		return fmt.Errorf("%s is %s, and should be %s", s.Key, s.Kind, wants[0])
	}
	return nil
}

func isList(flag *pflag.Flag) bool {
	_, ok := flag.Value.(pflag.SliceValue)
	return ok
}

// settings are applied to one command.
type settings struct {
	app *app
	cmd *cobra.Command
	// taken are the flags that have a value from something stronger.
	taken map[string]bool
}

// open tells whether a flag may be set: it, and all that would be in its way,
// were not by something stronger.
func (s *settings) open(flag string, stronger map[string]bool) bool {
	if stronger[flag] {
		return false
	}
	for _, group := range alternatives {
		if slices.Contains(group, flag) && slices.ContainsFunc(group, func(other string) bool { return stronger[other] }) {
			return false
		}
	}
	f := s.cmd.Flags().Lookup(flag)
	if _, sandbox := f.Annotations[describes]; sandbox && stronger["snapshot"] {
		return false // which has decided
	}
	network := s.cmd.Flags().Lookup("network")
	return !(slices.Contains(networkOnly, flag) && stronger["network"] && network.Value.String() == "none")
}

// setting is one that may be applied.
type setting struct {
	flag   string
	values []string
	list   bool // each of values is an element, commas and all
	source string
}

func (s *settings) fromVariables() error {
	var all []setting
	for _, name := range names(flagsOf(s.cmd, general)) {
		if value := os.Getenv(variable(name)); value != "" {
			all = append(all, setting{flag: name, values: []string{value}, source: "$" + variable(name)})
		}
	}
	return s.apply(all)
}

func (s *settings) fromFile(file config.File, command string) error {
	belongs := general
	if command != "" {
		belongs = func(_ *cobra.Command, f *pflag.Flag) bool { return configurable(f) }
	}
	flags := flagsOf(s.cmd, belongs)
	var all []setting
	for _, found := range file.Settings {
		if found.Command == command && flags[found.Key] != nil {
			all = append(all, setting{found.Key, found.Values, found.Kind == config.List, file.At(found.Line)})
		}
	}
	return s.apply(all)
}

// apply sets flags from one source, whose settings are equally strong.
func (s *settings) apply(all []setting) error {
	stronger := map[string]bool{}
	for name := range s.taken {
		stronger[name] = true
	}
	for _, one := range all {
		if !s.open(one.flag, stronger) {
			continue
		}
		// Not by the flag set, for which it would be typed.
		flag := s.cmd.Flags().Lookup(one.flag)
		var err error
		if list, ok := flag.Value.(pflag.SliceValue); ok && one.list {
			err = list.Replace(one.values)
		} else {
			err = flag.Value.Set(one.values[0])
		}
		if err != nil {
			return api.Errorf(api.ErrConfig, "%s: Invalid %s: %.80q: %w", one.source, one.flag, strings.Join(one.values, ","), err)
		}
		s.taken[one.flag] = true
		s.app.sources["--"+one.flag] = one.source
	}
	return nil
}

// blame says where a value came from that was not typed.
func (a *app) blame(e *api.Error) {
	if source := a.sources[e.Flag]; source != "" {
		e.Message += fmt.Sprintf(" (It is from %s.)", source)
	}
}

// nearest is the word that is most like what was typed, if one is.
func nearest(typed string, words []string) string {
	best, least := "", 1+len(typed)/3
	for _, word := range words {
		if d := distance(typed, word); d <= least {
			best, least = word, d-1
		}
	}
	return best
}

// distance is Levenshtein's.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			diagonal, row[j+1] = row[j+1], min(diagonal+cost, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}
