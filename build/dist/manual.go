package main

import (
	"bytes"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"

	"github.com/vmsan/vmsan/internal/cli"
)

// completions are the scripts for shells, by where those look for them.
func completions() map[string][]byte {
	scripts := map[string][]byte{}
	root := cli.Root()
	for path, write := range map[string]func(io.Writer) error{
		"usr/share/bash-completion/completions/vmsan":    func(w io.Writer) error { return root.GenBashCompletionV2(w, true) },
		"usr/share/zsh/vendor-completions/_vmsan":        root.GenZshCompletion,
		"usr/share/fish/vendor_completions.d/vmsan.fish": func(w io.Writer) error { return root.GenFishCompletion(w, true) },
	} {
		var script bytes.Buffer
		if err := write(&script); err != nil {
			panic(err) // memory takes it
		}
		scripts[path] = script.Bytes()
	}
	return scripts
}

// manuals are the pages of all commands, by file name.
func (r release) manuals() (map[string][]byte, error) {
	root := cli.Root()
	root.DisableAutoGenTag = true
	pages := map[string][]byte{}
	return pages, r.addManual(pages, root)
}

func (r release) addManual(pages map[string][]byte, cmd *cobra.Command) error {
	if cmd.Hidden || cmd.IsAdditionalHelpTopicCommand() {
		return nil
	}
	name := strings.ReplaceAll(cmd.CommandPath(), " ", "-")
	var page bytes.Buffer
	header := doc.GenManHeader{Section: "1", Date: &r.made, Source: "vmsan " + r.version, Manual: "vmsan"}
	if err := doc.GenMan(cmd, &header, &page); err != nil {
		return fmt.Errorf("write the manual of %s: %w", name, err)
	}
	pages[name+".1"] = page.Bytes()
	for _, sub := range cmd.Commands() {
		if err := r.addManual(pages, sub); err != nil {
			return err
		}
	}
	return nil
}
