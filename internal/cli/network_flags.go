package cli

import (
	"github.com/spf13/cobra"

	"github.com/vmsan/vmsan/internal/policy"
	"github.com/vmsan/vmsan/internal/sandbox"
)

// policyFlags are the flags of a network policy, as typed.
type policyFlags struct {
	mode  string
	lists sandbox.PolicyLists
}

func (f *policyFlags) register(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.mode, "network-policy", "", "`POLICY`: allow-all (the public internet), deny-all, or custom (default: allow-all, or custom with any of the lists)")
	registerLists(cmd, &f.lists, "", "reach")
	completeChoice(cmd, "network-policy", "allow-all", "deny-all", "custom")
}

// registerLists adds a flag for each list of a policy, with a prefix.
func registerLists(cmd *cobra.Command, l *sandbox.PolicyLists, prefix, verb string) {
	flags := cmd.Flags()
	flags.StringSliceVar(&l.AllowedDomains, prefix+"allowed-domain", nil, verb+" `DOMAIN`: a name, or *. and a name, also with :PORT; a list with commas, may be repeated")
	flags.StringSliceVar(&l.AllowedCIDRs, prefix+"allowed-cidr", nil, verb+" `CIDR`: IPv4 addresses, also with :PORT or :PORT-PORT and /tcp or /udp; may be repeated")
	flags.StringSliceVar(&l.DeniedCIDRs, prefix+"denied-cidr", nil, "never "+verb+" `CIDR`, whatever else is allowed; may be repeated")
}

func (f *policyFlags) parse() (policy.Policy, error) { return f.lists.Parse(f.mode) }

// networkFlags are the flags of create that describe its network.
type networkFlags struct {
	policy               policyFlags
	publish, publishPort []string
	dns                  []string
	bandwidth            string
}

func (f *networkFlags) register(cmd *cobra.Command) {
	f.policy.register(cmd)
	flags := cmd.Flags()
	flags.StringSliceVarP(&f.publish, "publish", "p", nil, "lead a port of the host to the sandbox: `[IP:]HOST:GUEST[/udp]`, or :lo behind it for the guest's own 127.0.0.1; the host listens on 127.0.0.1 unless told otherwise; may be repeated")
	flags.StringSliceVar(&f.publishPort, "publish-port", nil, "lead a `PORT` of the host to the same of the sandbox; may be repeated")
	flags.StringSliceVar(&f.dns, "dns", nil, "ask the DNS server at `ADDRESS[:PORT]` instead of the host's; may be repeated")
	flags.StringVar(&f.bandwidth, "bandwidth", "", "limit the network to a `RATE` like 10mbit, or 10mbit:20mbit down and up")
}

// complete parses what was typed into o.
func (f *networkFlags) complete(o *sandbox.CreateOptions) (err error) {
	if o.Policy, err = f.policy.parse(); err != nil {
		return err
	}
	if o.Publications, err = sandbox.ParsePublications(f.publish); err != nil {
		return err
	}
	ports, err := sandbox.ParsePorts(f.publishPort)
	if err != nil {
		return err
	}
	o.Publications = append(o.Publications, ports...)
	if o.Resolvers, err = sandbox.ParseResolvers(f.dns); err != nil {
		return err
	}
	if f.bandwidth != "" {
		o.Bandwidth, err = sandbox.ParseBandwidth(f.bandwidth)
	}
	return err
}
