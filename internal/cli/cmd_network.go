package cli

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/vmsan/vmsan/api"
	"github.com/vmsan/vmsan/internal/sandbox"
	"github.com/vmsan/vmsan/internal/store"
)

// networkChange are the flags of network, as typed.
type networkChange struct {
	policy      policyFlags
	add, remove sandbox.PolicyLists
	kill        bool
}

func (a *app) networkCommand() *cobra.Command {
	var f networkChange
	cmd := &cobra.Command{
		Use:   "network VM [flags]",
		Short: "Show or change what a sandbox may reach",
		Long: "network prints the network policy of a sandbox, or changes it, at once and without a moment in which more is\n" +
			"open than before or after. The flags of create replace the policy as a whole; those with add- and remove- change\n" +
			"single rules. Flows that are open go on unless --kill is given.",
		Example: "  vmsan network web --allowed-domain '*.example.com' --allowed-cidr 203.0.113.7:5432/tcp\n" +
			"  vmsan network web --add-allowed-domain example.org\n" +
			"  vmsan network web --network-policy deny-all --kill\n" +
			"  vmsan network log web -f",
		Args:              arguments(cobra.ExactArgs(1)),
		ValidArgsFunction: a.completeVM,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.runNetwork(cmd.Context(), args[0], f)
		},
	}
	f.policy.register(cmd)
	registerLists(cmd, &f.add, "add-", "from now on reach")
	registerLists(cmd, &f.remove, "remove-", "no longer")
	cmd.Flags().BoolVar(&f.kill, "kill", false, "cut open flows that are no longer allowed")
	cmd.AddCommand(a.networkLogCommand())
	return cmd
}

// change is what the flags ask for; nil if they ask for nothing.
func (f networkChange) change() (sandbox.PolicyChange, error) {
	p, err := f.policy.parse()
	if err != nil {
		return nil, err
	}
	replaces, edits := p.Mode != "", !empty(f.add) || !empty(f.remove)
	switch {
	case replaces && edits:
		return nil, api.Errorf(api.ErrValidationFlags, "Cannot use flags that replace the policy and flags that change single rules together").
			WithFlag("--network-policy").WithHint("use either --allowed-domain ... or --add-allowed-domain ...")
	case replaces:
		return sandbox.Replace(p), nil
	case edits:
		return sandbox.Edit(f.add, f.remove), nil
	case f.kill:
		return nil, api.Errorf(api.ErrValidationFlags, "--kill does nothing without a change of the policy").WithFlag("--kill")
	}
	return nil, nil
}

func empty(l sandbox.PolicyLists) bool {
	return len(l.AllowedDomains)+len(l.AllowedCIDRs)+len(l.DeniedCIDRs) == 0
}

func (a *app) runNetwork(ctx context.Context, ref string, f networkChange) error {
	change, err := f.change()
	if err != nil {
		return err
	}
	service, err := a.service()
	if err != nil {
		return err
	}
	if change == nil {
		return a.printPolicy(ctx, service, ref)
	}
	record, previous, killed, err := service.SetPolicy(ctx, ref, change, f.kill)
	if err != nil {
		return err
	}
	result := api.NetworkChange{VM: record.ID, Previous: store.ShowPolicy(previous), Current: store.ShowPolicy(record.Spec.Policy), Killed: killed}
	if a.json {
		a.printJSON(result)
		return nil
	}
	a.say("%s: %s, before: %s%s", record.ID, describePolicy(result.Current), describePolicy(result.Previous), killedFlows(f.kill, killed))
	return nil
}

func killedFlows(asked bool, n int) string {
	if !asked {
		return ""
	}
	return fmt.Sprintf("; %d flows cut", n)
}

func (a *app) printPolicy(ctx context.Context, service *sandbox.Service, ref string) error {
	record, err := service.Get(ctx, ref)
	if err != nil {
		return err
	}
	if !record.Spec.Networked() {
		return api.Errorf(api.ErrUnsupported, "VM %s was created without a network", record.ID).WithVM(record.ID)
	}
	p := store.ShowPolicy(record.Spec.Policy)
	if a.json {
		a.printJSON(p)
		return nil
	}
	fmt.Fprintln(a.stdout, describePolicy(p))
	return nil
}

// describePolicy is a policy in the words of the flags.
func describePolicy(p api.NetworkPolicy) string {
	words := []string{p.Policy}
	for _, list := range []struct {
		flag  string
		items []string
	}{{"--allowed-domain", p.AllowedDomains}, {"--allowed-cidr", p.AllowedCIDRs}, {"--denied-cidr", p.DeniedCIDRs}} {
		if len(list.items) > 0 {
			words = append(words, list.flag, strings.Join(list.items, ","))
		}
	}
	return strings.Join(words, " ")
}
