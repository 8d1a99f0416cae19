package cli

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/vmsan/vmsan/api"
)

func (a *app) explainCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "explain CODE",
		Short: "Say what an error means, and what to do about it",
		Long: "explain says what the code of an error means, what it usually comes from, and what to type. Errors have their\n" +
			"codes with --json and with --verbose. ERR_ in front may be left out.",
		Example: "  vmsan explain ERR_VM_BOOT\n  vmsan explain disk-full",
		Args:    arguments(cobra.ExactArgs(1)),
		ValidArgsFunction: func(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
			if len(args) > 0 {
				return nil, cobra.ShellCompDirectiveNoFileComp
			}
			var words []string
			for _, code := range codes() {
				words = append(words, code+"\t"+api.Codes[api.Code(code)].Summary)
			}
			return words, cobra.ShellCompDirectiveNoFileComp
		},
		RunE: func(_ *cobra.Command, args []string) error { return a.runExplain(args[0]) },
	}
}

func codes() (all []string) {
	for code := range maps.Keys(api.Codes) {
		all = append(all, string(code))
	}
	slices.Sort(all)
	return all
}

func (a *app) runExplain(typed string) error {
	code := strings.ToUpper(strings.ReplaceAll(typed, "-", "_"))
	if !strings.HasPrefix(code, "ERR_") {
		code = "ERR_" + code
	}
	e, known := api.Explain(api.Code(code))
	if !known {
		err := api.Errorf(api.ErrValidationChoice, "there is no error %.80q", typed)
		if near := nearest(code, codes()); near != "" {
			return err.WithHint("vmsan explain %s", near)
		}
		return err.WithHint("docs/errors.md has all of them")
	}
	if a.json {
		a.printJSON(e)
		return nil
	}
	fmt.Fprintf(a.stdout, "%s, exit code %d: %s.\n\nUsual causes:\n", e.Code, e.ExitCode, e.Meaning)
	for _, cause := range e.Causes {
		fmt.Fprintf(a.stdout, "  - %s\n", cause)
	}
	fmt.Fprintln(a.stdout, "\nWhat to do:")
	for _, remedy := range e.Remedies {
		fmt.Fprintf(a.stdout, "  - %s\n", remedy)
	}
	return nil
}
