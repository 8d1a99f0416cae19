package cli

import (
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/vmsan/vmsan/api"
	"github.com/vmsan/vmsan/internal/config"
)

func (a *app) configCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "config",
		Short: "Show what flags are where they are not typed, and why",
		Long: "config prints the settings in force. A flag that is typed comes first, then a variable of the environment, then\n" +
			"the config file. In that, keys are the flags that all commands have and those that describe a new sandbox; a\n" +
			"table with a command's name has its other flags. See docs/config.md.",
		Example: "  vmsan config\n  VMSAN_MEMORY=1g vmsan config --json",
		Args:    arguments(cobra.NoArgs),
		RunE:    func(cmd *cobra.Command, _ []string) error { return a.runConfig(cmd) },
	}
}

func (a *app) runConfig(cmd *cobra.Command) error {
	file, err := a.configFile(cmd)
	if err != nil {
		return err
	}
	create, _, err := cmd.Root().Find([]string{"create"})
	if err != nil {
		return err
	}
	// Who describes a sandbox has all of them.
	if err := a.applySettings(create); err != nil {
		return err
	}
	shown := api.Settings{File: file.Path, Settings: []api.Setting{}}
	flags := flagsOf(create, general)
	for _, name := range names(flags) {
		flag, from := flags[name], a.sources["--"+name]
		switch {
		case flag.Changed:
			from = "--" + name
		case from == "":
			from = "default"
		}
		shown.Settings = append(shown.Settings, api.Setting{Key: name, Value: a.valueOf(flag), From: from})
	}
	for _, s := range file.Settings {
		if s.Command != "" {
			shown.Settings = append(shown.Settings, api.Setting{
				Command: s.Command, Key: s.Key, Value: strings.Join(s.Values, ","), From: file.At(s.Line),
			})
		}
	}
	return a.printSettings(shown, file)
}

// valueOf is a flag's value as it would be typed.
func (a *app) valueOf(flag *pflag.Flag) string {
	if list, ok := flag.Value.(pflag.SliceValue); ok {
		return strings.Join(list.GetSlice(), ",")
	}
	if flag.Name == "dir" {
		// Where nothing is said it depends on who asks.
		if layout, err := a.stateLayout(); err == nil {
			return layout.Dir
		}
	}
	return flag.Value.String()
}

func (a *app) printSettings(shown api.Settings, file config.File) error {
	if a.json {
		a.printJSON(shown)
		return nil
	}
	var rows [][]string
	for _, s := range shown.Settings {
		key := s.Key
		if s.Command != "" {
			key = s.Command + ": " + key
		}
		rows = append(rows, []string{key, orDash(printable(s.Value)), printable(s.From)})
	}
	table(a.stdout, "KEY\tVALUE\tFROM", rows)
	if len(file.Settings) == 0 {
		a.say("There is nothing in %s.", file.Path)
	}
	return nil
}
