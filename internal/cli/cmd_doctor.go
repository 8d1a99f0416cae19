package cli

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/vmsan/vmsan/api"
	"github.com/vmsan/vmsan/internal/doctor"
	"github.com/vmsan/vmsan/internal/sandbox"
)

func (a *app) doctorCommand() *cobra.Command {
	var o sandbox.DoctorOptions
	var list bool
	cmd := &cobra.Command{
		Use:   "doctor [CHECK...]",
		Short: "Find out what is wrong with this host",
		Long: "doctor looks at this host for what keeps sandboxes from working, or from working as well as they could, and names\n" +
			"a command against each thing it finds. It changes nothing unless --fix is given, and sends nothing unless --probe is.\n" +
			"It exits with 11 if a check fails, and with 0 if there are warnings at most.",
		Args:      cobra.ArbitraryArgs,
		ValidArgs: doctor.Names(),
		RunE: func(cmd *cobra.Command, args []string) error {
			if list {
				return a.runDoctorList()
			}
			o.Checks = args
			return a.runDoctor(cmd.Context(), o)
		},
	}
	cmd.Flags().BoolVar(&o.Fix, "fix", false, "remove what dead sandboxes have left")
	cmd.Flags().BoolVar(&o.Probe, "probe", false, "boot a guest under each accelerator, and ask the resolvers")
	cmd.Flags().BoolVar(&list, "list", false, "list the checks, and make none")
	return cmd
}

func (a *app) runDoctorList() error {
	checks := []api.Check{}
	var rows [][]string
	for _, c := range doctor.Checks() {
		checks = append(checks, api.Check{Name: c.Name, About: c.About})
		rows = append(rows, []string{c.Name, c.About})
	}
	if a.json {
		a.printJSON(checks)
		return nil
	}
	table(a.stdout, "CHECK\tLOOKS AT", rows)
	return nil
}

func (a *app) runDoctor(ctx context.Context, o sandbox.DoctorOptions) error {
	layout, err := a.stateLayout()
	if err != nil {
		return err
	}
	if !a.json {
		o.Found = a.printFinding
	}
	findings, err := sandbox.At(layout, a.log).Doctor(ctx, o)
	if err != nil {
		return err
	}
	d := diagnose(findings)
	if a.json {
		a.printJSON(d)
	}
	a.say("%d passed, %d with a warning, %d failed", d.Passed, d.Warned, d.Failed)
	if d.Failed > 0 {
		return exitStatus(api.KindUnfit)
	}
	return nil
}

func diagnose(findings []api.Finding) api.Diagnosis {
	d := api.Diagnosis{Findings: findings}
	for _, f := range findings {
		switch f.Status {
		case api.HealthPass:
			d.Passed++
		case api.HealthWarn:
			d.Warned++
		case api.HealthFail:
			d.Failed++
		}
	}
	return d
}

// printFinding prints each as soon as it is known, in columns that need no
// other. With --quiet it leaves out what is well.
func (a *app) printFinding(f api.Finding) {
	if a.quiet && f.Status == api.HealthPass && len(f.Fixed) == 0 {
		return
	}
	fmt.Fprintf(a.stdout, "%-5s %-10s  %s\n", f.Status, f.Check, printable(oneLine(f.Detail)))
	for _, fixed := range f.Fixed {
		fmt.Fprintf(a.stdout, "%16s  Fixed: %s\n", "", printable(fixed))
	}
	if f.Remedy != "" {
		fmt.Fprintf(a.stdout, "%16s  Hint: %s\n", "", printable(f.Remedy))
	}
}

// oneLine has no line break in it.
func oneLine(text string) string { return strings.Join(strings.Fields(text), " ") }
