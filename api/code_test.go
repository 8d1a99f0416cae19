package api

import (
	"flag"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "write docs/exit-codes.md and docs/errors.md")

// codesInSource are the constants of type Code in code.go, name to value.
func codesInSource(t *testing.T) map[string]Code {
	t.Helper()
	file, err := parser.ParseFile(token.NewFileSet(), "code.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	codes := map[string]Code{}
	ast.Inspect(file, func(n ast.Node) bool {
		spec, ok := n.(*ast.ValueSpec)
		if !ok || spec.Type == nil || fmt.Sprint(spec.Type) != "Code" {
			return true
		}
		text, err := strconv.Unquote(spec.Values[0].(*ast.BasicLit).Value)
		if err != nil {
			t.Fatal(err)
		}
		codes[spec.Names[0].Name] = Code(text)
		return true
	})
	if len(codes) == 0 {
		t.Fatal("code.go has no codes")
	}
	return codes
}

// E1: every code is unique, and in the table with a kind and a meaning.
func TestCodes(t *testing.T) {
	form := regexp.MustCompile(`^ERR_[A-Z]+(_[A-Z]+)*$`)
	names := map[Code]string{}
	for name, code := range codesInSource(t) {
		if other := names[code]; other != "" {
			t.Errorf("%s and %s are both %s", name, other, code)
		}
		names[code] = name
		meaning, ok := Codes[code]
		if !ok {
			t.Errorf("%s is not in the table", name)
		}
		if !form.MatchString(string(code)) || meaning.Summary == "" {
			t.Errorf("%s: %q, meaning %q", name, code, meaning.Summary)
		}
		if _, ok := kinds[meaning.Kind]; !ok {
			t.Errorf("%s has the kind %d, which has no meaning", name, meaning.Kind)
		}
	}
	if len(Codes) != len(names) {
		t.Errorf("the table has %d codes, the source %d", len(Codes), len(names))
	}
}

// TestExitCodesPage keeps docs/exit-codes.md what the table says; go test
// ./api -update writes it.
func TestExitCodesPage(t *testing.T) {
	checkPage(t, "../docs/exit-codes.md", exitCodesPage())
}

// checkPage compares a page that is written from a table, or writes it.
func checkPage(t *testing.T, path, want string) {
	t.Helper()
	if *update {
		if err := os.WriteFile(path, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, string(got)); diff != "" {
		t.Errorf("make docs writes %s anew (-want +got):\n%s", path, diff)
	}
}

// kinds says what exit codes mean.
var kinds = map[Kind]string{
	KindInternal:    "vmsan or the host failed",
	KindUsage:       "the command line is wrong",
	KindNotFound:    "what was named does not exist",
	KindConflict:    "it exists already, or is in the wrong state",
	KindTimeout:     "something took longer than it may",
	KindSetup:       "vmsan is not set up on this host",
	KindUnsupported: "this host cannot do that",
	KindPermission:  "the user may not do that",
	KindExhausted:   "out of disk, memory or numbers",
	KindGuest:       "the guest failed or misbehaved",
	KindUnfit:       "doctor found something that does not work",
	KindInterrupted: "it was interrupted",
}

func exitCodesPage() string {
	var page strings.Builder
	page.WriteString(`# Exit codes

Written from the table in api/code.go by ` + "`make docs`" + `.

` + "`vmsan run`, `exec`, `connect` and `attach`" + ` exit as the guest's command does:

| Exit code | Meaning |
|---|---|
| 0 to 255 | the command's own |
| 124 | the command ran longer than --timeout, and was killed |
| 125 | vmsan failed before the command ended; the error says why |
| 126 | the command cannot be executed |
| 127 | the command was not found in the guest |
| 128 + N | signal N ended the command |
| 130 | vmsan itself was interrupted |

All other commands exit with 0, with 130 if they were interrupted, or with the kind of the error:

| Exit code | Kind |
|---|---|
`)
	for _, kind := range slices.Sorted(maps.Keys(kinds)) {
		fmt.Fprintf(&page, "| %d | %s |\n", kind, kinds[kind])
	}
	page.WriteString(`
With --json an error is the one document on stdout: ` + "`{\"error\": {\"code\", \"message\", \"hint\", \"flag\", \"vm\", \"console\", \"log\"}}`" + `, of which
only the first two are always there. A command that was given several sandboxes prints ` + "`{\"results\": [{\"vm\", \"status\", \"trace\", \"error\"}]}`" + `,
of which only the first is always there, and exits as the first failure. Codes are stable:

| Code | Exit code | Meaning |
|---|---|---|
`)
	codes := slices.SortedFunc(maps.Keys(Codes), func(a, b Code) int {
		if order := int(Codes[a].Kind) - int(Codes[b].Kind); order != 0 {
			return order
		}
		return strings.Compare(string(a), string(b))
	})
	for _, code := range codes {
		fmt.Fprintf(&page, "| %s | %d | %s |\n", code, Codes[code].Kind, Codes[code].Summary)
	}
	return page.String()
}
