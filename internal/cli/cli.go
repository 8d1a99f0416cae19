// Package cli is the command line: it reads flags, calls the verbs of package
// sandbox, and prints what they return. It holds no logic of its own.
package cli

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/vmsan/vmsan/api"
	"github.com/vmsan/vmsan/internal/gate"
	"github.com/vmsan/vmsan/internal/monitor"
	"github.com/vmsan/vmsan/internal/sandbox"
	"github.com/vmsan/vmsan/internal/store"
)

// Version is set when a release is built.
var Version = "dev"

// app is what the commands share.
type app struct {
	dir            string
	config         string
	json           bool
	quiet, verbose bool
	// sources says where flags that were not typed have their values from, by
	// the flag's name with dashes.
	sources map[string]string

	stdin  io.Reader
	stdout io.Writer
	stderr io.Writer
	log    *slog.Logger

	// talk is held while something is said on stderr, by commands that work on
	// several sandboxes side by side.
	talk sync.Mutex

	// unparsed is true if the flags could not be parsed.
	unparsed bool
}

// Main is the program. It returns the exit code.
func Main(args []string) int {
	if len(args) > 1 {
		switch args[1] {
		case gate.Command:
			return runGate(args[2:])
		case monitor.Command:
			return runMonitor(args[2:])
		case sandbox.TemplateCommand:
			return runMakeTemplate(args[2:])
		case sandbox.SaveCommand:
			return runSave(args[2:])
		}
	}
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM, unix.SIGHUP)
	defer stop()
	// Who asks twice does not want to wait for us to clean up; the sandboxes'
	// monitors do that as well.
	context.AfterFunc(ctx, stop)
	a := &app{stdin: os.Stdin, stdout: os.Stdout, stderr: os.Stderr}
	return a.run(ctx, args[1:])
}

// IsHelper tells whether a program that was started with args is one of the
// processes behind sandboxes. A program that vmsan is a library of may have
// commands of the same names, but not with such arguments.
func IsHelper(args []string) bool {
	if len(args) < 3 {
		return false
	}
	switch args[1] {
	case gate.Command, monitor.Command:
		return store.ValidID(args[2])
	case sandbox.TemplateCommand, sandbox.SaveCommand:
		return filepath.IsAbs(args[2])
	}
	return false
}

// runGate and runMonitor are the processes behind a sandbox. They are found
// before any flag is looked at, so that they start quickly.
func runGate(args []string) int {
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	if err := gate.Main(args, log); err != nil {
		log.Error("gate", "error", err)
		return 1
	}
	return 0
}

func runMonitor(args []string) int {
	withFirst := len(args) == 3 && args[2] == monitor.WithFirst
	if len(args) != 2 && !withFirst {
		fmt.Fprintln(os.Stderr, "vmsan monitor is started by vmsan itself")
		return 2
	}
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM, unix.SIGHUP)
	defer stop()
	layout, err := store.NewLayout(args[1])
	if err == nil {
		err = monitor.Main(ctx, layout, args[0], withFirst, monitor.Helpers{Driver: sandbox.Driver, Snapshot: sandbox.SaveBeside})
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "monitor:", err)
		return 1
	}
	return 0
}

// runSave is the process that saves a sandbox whose time is over.
func runSave(args []string) int {
	if len(args) != 2 {
		fmt.Fprintln(os.Stderr, "vmsan save-beside is started by vmsan itself")
		return 2
	}
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM, unix.SIGHUP)
	defer stop()
	layout, err := store.NewLayout(args[0])
	if err == nil {
		_, _, err = sandbox.At(layout, slog.New(slog.NewTextHandler(os.Stderr, nil))).CreateSnapshot(ctx, args[1], "", false)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// runMakeTemplate is the process that makes a template beside the sandbox that
// lacked it. It gives way to all who are waited for.
func runMakeTemplate(args []string) int {
	if len(args) != 1 {
		fmt.Fprintln(os.Stderr, "vmsan make-template is started by vmsan itself")
		return 2
	}
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM, unix.SIGHUP)
	defer stop()
	if err := unix.Setpriority(unix.PRIO_PROCESS, 0, 10); err != nil {
		fmt.Fprintln(os.Stderr, "make template:", err)
	}
	a := &app{dir: args[0], log: slog.New(slog.NewTextHandler(os.Stderr, nil))}
	spec, err := sandbox.ReadTemplateSpec(os.Stdin)
	if err == nil {
		var service *sandbox.Service
		if service, err = a.service(); err == nil {
			err = service.MakeTemplate(ctx, spec)
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "make template:", err)
		return 1
	}
	return 0
}

func (a *app) run(ctx context.Context, args []string) int {
	root := a.rootCommand()
	root.SetArgs(args)
	root.SetOut(a.stdout)
	root.SetErr(a.stderr)
	cmd, err := root.ExecuteContextC(ctx)
	// A wrong flag or command ends the parsing, maybe before it came to --json.
	if err != nil && (a.unparsed || cmd == root) {
		a.json = a.json || asksJSON(args)
	}
	return a.finish(err, cmd.Annotations[guestExits] != "")
}

// asksJSON tells whether --json is among our own arguments.
func asksJSON(args []string) bool {
	for _, arg := range args {
		switch arg {
		case "--":
			return false
		case "--json", "--json=true":
			return true
		}
	}
	return false
}

// guestExits marks commands whose exit code is that of the guest's command.
const guestExits = "guest-exits"

var passesExit = map[string]string{guestExits: "yes"}

// Root is all commands with their flags, for who writes of them.
func Root() *cobra.Command {
	return (&app{stdin: os.Stdin, stdout: os.Stdout, stderr: os.Stderr}).rootCommand()
}

func (a *app) rootCommand() *cobra.Command {
	var version bool
	root := &cobra.Command{
		Use:   "vmsan",
		Short: "Run code nobody has to trust in microVMs",
		Long: "vmsan runs code nobody has to trust, each piece in a microVM of its own with its own kernel.\n" +
			"A sandbox is such a machine with a disk of its own. Commands take its id, the beginning of its id, or its name.",
		Example: "  vmsan run -- uname -a          one command in a new sandbox, which is then removed\n" +
			"  vmsan create --name web        a sandbox that stays\n" +
			"  vmsan exec web ls -la /        a command in it\n" +
			"  vmsan stop web; vmsan rm web   shut it down; remove it with its disk",
		SilenceErrors:              true,
		SilenceUsage:               true,
		SuggestionsMinimumDistance: 2,
		PersistentPreRunE:          func(cmd *cobra.Command, _ []string) error { return a.prepare(cmd) },
		CompletionOptions:          cobra.CompletionOptions{DisableDefaultCmd: true},
		RunE: func(cmd *cobra.Command, _ []string) error {
			if version {
				return a.runVersion()
			}
			return cmd.Help()
		},
	}
	root.Flags().BoolVar(&version, "version", false, "print the version")
	flags := root.PersistentFlags()
	flags.StringVar(&a.dir, "dir", "", "state `DIRECTORY` (default: $VMSAN_DIR, or /var/lib/vmsan for root and ~/.local/state/vmsan for others)")
	flags.StringVar(&a.config, "config", "", "config `FILE` (default: $VMSAN_CONFIG, or /etc/vmsan/config.toml for root and ~/.config/vmsan/config.toml for others)")
	flags.BoolVar(&a.json, "json", false, "print one JSON document on stdout")
	flags.BoolVarP(&a.quiet, "quiet", "q", false, "print results only")
	flags.BoolVarP(&a.verbose, "verbose", "v", false, "say what is being done")
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		a.unparsed = true
		return api.Errorf(api.ErrUsage, "%w", err).WithHint("%s --help", cmd.CommandPath())
	})
	root.SetHelpCommand(&cobra.Command{
		Use:               "help [COMMAND]",
		Short:             "Say what a command does",
		ValidArgsFunction: completeCommand,
		RunE:              func(_ *cobra.Command, args []string) error { return help(root, args) },
	})
	a.addCommands(root)
	return root
}

func completeCommand(cmd *cobra.Command, args []string, _ string) (names []string, _ cobra.ShellCompDirective) {
	if parent, rest, err := cmd.Root().Find(args); err == nil && len(rest) == 0 {
		for _, sub := range parent.Commands() {
			if sub.IsAvailableCommand() {
				names = append(names, sub.Name()+"\t"+sub.Short)
			}
		}
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}

// help is that of cobra, but for what there is not: it exits with 0 there.
func help(root *cobra.Command, args []string) error {
	cmd, rest, err := root.Find(args)
	if err != nil || len(rest) > 0 {
		return api.Errorf(api.ErrUsage, "there is no command %.80q", strings.Join(args, " ")).WithHint("vmsan --help")
	}
	cmd.InitDefaultHelpFlag()
	return cmd.Help()
}

func (a *app) addCommands(root *cobra.Command) {
	for _, group := range []struct {
		title    string
		commands []*cobra.Command
	}{
		{"Sandboxes:", []*cobra.Command{
			a.runCommand(), a.createCommand(), a.listCommand(), a.inspectCommand(), a.startCommand(), a.stopCommand(),
			a.restartCommand(), a.removeCommand(), a.waitCommand(), a.extendCommand(), a.renameCommand(), a.resizeCommand(), a.statsCommand(), a.logsCommand(), a.networkCommand(),
			a.pauseCommand(), a.resumeCommand(), a.forkCommand(), a.restoreCommand(), a.snapshotCommand(),
		}},
		{"Commands in a sandbox:", []*cobra.Command{
			a.execCommand(), a.connectCommand(), a.sessionsCommand(), a.psCommand(), a.attachCommand(), a.killCommand(),
		}},
		{"Files and ports of a sandbox:", []*cobra.Command{
			a.cpCommand(), a.syncCommand(), a.uploadCommand(), a.downloadCommand(), a.portsCommand(), a.portForwardCommand(),
		}},
		{"Images and volumes:", []*cobra.Command{a.imageCommand(), a.volumeCommand()}},
		{"This program:", []*cobra.Command{
			a.setupCommand(), a.recoverCommand(), a.doctorCommand(), a.benchCommand(), a.gcCommand(), a.dfCommand(), a.eventsCommand(), a.templateCommand(), a.configCommand(),
			a.explainCommand(), a.versionCommand(), a.completionCommand(root),
		}},
	} {
		root.AddGroup(&cobra.Group{ID: group.title, Title: group.title})
		for _, cmd := range group.commands {
			cmd.GroupID = group.title
			root.AddCommand(cmd)
		}
	}
	root.SetHelpCommandGroupID("This program:")
}

func (a *app) prepare(cmd *cobra.Command) error {
	if err := a.applySettings(cmd); err != nil {
		return err
	}
	if cmd.Flags().Changed("dir") && a.dir == "" {
		return api.Errorf(api.ErrValidationStateDir, "Invalid --dir: it is empty.").WithFlag("--dir")
	}
	level := slog.LevelWarn
	switch {
	case a.quiet:
		level = slog.LevelError
	case a.verbose:
		level = slog.LevelDebug
	}
	a.log = slog.New(slog.NewTextHandler(a.stderr, &slog.HandlerOptions{Level: level, ReplaceAttr: withoutTime}))
	return nil
}

func withoutTime(_ []string, attr slog.Attr) slog.Attr {
	if attr.Key == slog.TimeKey {
		return slog.Attr{}
	}
	return attr
}

// stateLayout names the files of the state directory.
func (a *app) stateLayout() (store.Layout, error) {
	if a.dir != "" && !filepath.IsAbs(a.dir) {
		abs, err := filepath.Abs(a.dir)
		if err != nil {
			return store.Layout{}, fmt.Errorf("make state directory absolute: %w", err)
		}
		a.dir = abs
	}
	layout, err := store.NewLayout(a.dir)
	if err != nil {
		return store.Layout{}, api.Errorf(api.ErrValidationStateDir, "%w", err).WithFlag("--dir")
	}
	return layout, nil
}

// service opens the state directory.
func (a *app) service() (*sandbox.Service, error) {
	layout, err := a.stateLayout()
	if err != nil {
		return nil, err
	}
	return sandbox.Open(layout, a.log)
}

// say prints something for people: not with --json or --quiet.
func (a *app) say(format string, args ...any) {
	if !a.json && !a.quiet {
		a.talk.Lock()
		defer a.talk.Unlock()
		fmt.Fprintf(a.stderr, format+"\n", args...)
	}
}

// arguments wraps cobra's checks of the number of arguments in our error.
func arguments(check cobra.PositionalArgs) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if err := check(cmd, args); err != nil {
			if !cmd.HasSubCommands() && strings.HasPrefix(err.Error(), "unknown command") { // as cobra.NoArgs has it
				err = fmt.Errorf("%s takes no arguments, and %.80q is one", cmd.CommandPath(), args[0])
			}
			return api.Errorf(api.ErrUsage, "%w", err).WithHint("%s --help", cmd.CommandPath())
		}
		return nil
	}
}
