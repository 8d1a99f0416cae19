package cli

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"
	"unicode/utf16"

	"github.com/vmsan/vmsan/api"
	"github.com/vmsan/vmsan/internal/store"
)

// printJSON prints v as the one document of --json. That stdout is closed
// cannot be told to anybody.
func (a *app) printJSON(v any) {
	var text bytes.Buffer
	e := json.NewEncoder(&text)
	e.SetIndent("", "  ")
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		return // of types that are not ours
	}
	io.WriteString(a.stdout, escaped(text.String()))
}

// escaped writes as JSON's escapes what a terminal could obey: JSON itself only
// wants that of the characters below the space. All others are within strings.
func escaped(text string) string {
	plain := func(c rune) bool { return c == '\n' || unicode.IsPrint(c) }
	if !strings.ContainsFunc(text, func(c rune) bool { return !plain(c) }) {
		return text
	}
	var b strings.Builder
	for _, c := range text {
		switch high, low := utf16.EncodeRune(c); {
		case plain(c):
			b.WriteRune(c)
		case high != unicode.ReplacementChar:
			fmt.Fprintf(&b, `\u%04x\u%04x`, high, low)
		default:
			fmt.Fprintf(&b, `\u%04x`, c)
		}
	}
	return b.String()
}

// table prints rows below a header, in columns.
func table(w io.Writer, header string, rows [][]string) {
	t := tabwriter.NewWriter(w, 0, 4, 2, ' ', 0)
	fmt.Fprintln(t, header)
	for _, row := range rows {
		for i, cell := range row {
			if i > 0 {
				fmt.Fprint(t, "\t")
			}
			fmt.Fprint(t, cell)
		}
		fmt.Fprintln(t)
	}
	t.Flush()
}

// ago says how long ago t was, to one unit.
func ago(t time.Time) string { return roughly(time.Since(t)) + " ago" }

// roughly is a time to one unit.
func roughly(d time.Duration) string {
	switch {
	case d < time.Minute:
		return fmt.Sprintf("%ds", int(d.Seconds()))
	case d < time.Hour:
		return fmt.Sprintf("%dm", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh", int(d.Hours()))
	}
	return fmt.Sprintf("%dd", int(d.Hours()/24))
}

// timeLeft says how long a sandbox may still run.
func timeLeft(r *store.Record) string {
	switch {
	case !r.TimeoutAt.IsZero():
		return "in " + roughly(max(time.Until(r.TimeoutAt), 0))
	case r.TimeoutLeft > 0:
		return roughly(r.TimeoutLeft) + " left"
	}
	return "-"
}

// printable replaces what could move a terminal's cursor.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return '?'
	}, s)
}

// mebibytes formats a memory or disk size.
func mebibytes(n int64) string {
	if n%1024 == 0 {
		return fmt.Sprintf("%dG", n/1024)
	}
	return fmt.Sprintf("%dM", n)
}

// printTrace prints the stages of a start.
func (a *app) printTrace(stages []api.Stage) {
	var rows [][]string
	for _, s := range stages {
		rows = append(rows, []string{s.Name, fmt.Sprintf("%.1f ms", s.Milliseconds), s.Detail})
	}
	a.talk.Lock()
	defer a.talk.Unlock()
	table(a.stderr, "STAGE\tTIME\tDETAIL", rows)
}
