package cli

import (
	"io"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/vmsan/vmsan/api"
	"github.com/vmsan/vmsan/internal/image"
	"github.com/vmsan/vmsan/internal/store"
)

// shells are those that cobra can write a script for.
var shells = []string{"bash", "zsh", "fish", "powershell"}

func (a *app) completionCommand(root *cobra.Command) *cobra.Command {
	return &cobra.Command{
		Use:   "completion SHELL",
		Short: "Print a script that completes vmsan's arguments in a shell",
		Long: "completion prints a script for bash, zsh, fish or powershell, which completes commands, flags, and the names\n" +
			"of sandboxes and images.",
		Example: "  source <(vmsan completion bash)\n" +
			"  vmsan completion fish > ~/.config/fish/completions/vmsan.fish",
		Args:      arguments(cobra.ExactArgs(1)),
		ValidArgs: shells,
		RunE:      func(_ *cobra.Command, args []string) error { return a.runCompletion(root, args[0]) },
	}
}

func (a *app) runCompletion(root *cobra.Command, shell string) error {
	var script strings.Builder
	if err := writeCompletion(root, shell, &script); err != nil {
		return err
	}
	if a.json {
		a.printJSON(api.Completion{Shell: shell, Script: script.String()})
		return nil
	}
	_, err := io.WriteString(a.stdout, script.String())
	return err
}

func writeCompletion(root *cobra.Command, shell string, w io.Writer) error {
	switch shell {
	case "bash":
		return root.GenBashCompletionV2(w, true)
	case "zsh":
		return root.GenZshCompletion(w)
	case "fish":
		return root.GenFishCompletion(w, true)
	case "powershell":
		return root.GenPowerShellCompletionWithDesc(w)
	}
	return api.Errorf(api.ErrValidationChoice, "Invalid shell: %.80q. Must be one of: %s.", shell, strings.Join(shells, ", "))
}

// completeChoice completes a flag that takes one of a few values.
func completeChoice(cmd *cobra.Command, flag string, choices ...string) {
	cmd.RegisterFlagCompletionFunc(flag, cobra.FixedCompletions(choices, cobra.ShellCompDirectiveNoFileComp))
}

// completeVM completes a first argument that names a sandbox.
func (a *app) completeVM(cmd *cobra.Command, args []string, toComplete string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveDefault
	}
	return a.completeVMs(cmd, args, toComplete)
}

// completeVMs completes arguments that all name sandboxes. It reads records
// and changes nothing: a key press must not.
func (a *app) completeVMs(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	layout, err := a.layout(cmd)
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	records, _, err := layout.List()
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	var words []string
	for _, r := range records {
		for _, word := range []string{r.Name, r.ID} {
			if word != "" && !slices.Contains(args, word) {
				words = append(words, word+"\t"+string(r.Status))
			}
		}
	}
	return words, cobra.ShellCompDirectiveNoFileComp
}

// completeImage completes the name of an image.
func (a *app) completeImage(cmd *cobra.Command, args []string, toComplete string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveDefault
	}
	return a.completeImages(cmd, args, toComplete)
}

// completeImages completes arguments that all name images.
func (a *app) completeImages(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	layout, err := a.layout(cmd)
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	names, err := image.Store{Layout: layout}.Names()
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	maps.DeleteFunc(names, func(name, _ string) bool { return slices.Contains(args, name) })
	return slices.Sorted(maps.Keys(names)), cobra.ShellCompDirectiveNoFileComp
}

// completePath completes files of the host, and sandboxes with the colon that
// is in front of a path in one.
func (a *app) completePath(cmd *cobra.Command, _ []string, toComplete string) ([]string, cobra.ShellCompDirective) {
	if strings.ContainsAny(toComplete, "/:.") {
		return nil, cobra.ShellCompDirectiveDefault
	}
	words, directive := a.completeVMs(cmd, nil, toComplete)
	if directive == cobra.ShellCompDirectiveError {
		return nil, cobra.ShellCompDirectiveDefault
	}
	words = slices.DeleteFunc(words, func(word string) bool { return !strings.HasPrefix(word, toComplete) })
	for i, word := range words {
		words[i] = strings.Replace(word, "\t", ":\t", 1)
	}
	return words, cobra.ShellCompDirectiveNoSpace
}

// layout is that of the state directory, for those who only look: completion
// runs before any command is prepared.
func (a *app) layout(cmd *cobra.Command) (store.Layout, error) {
	if err := a.prepare(cmd); err != nil {
		return store.Layout{}, err
	}
	return store.NewLayout(a.dir)
}
