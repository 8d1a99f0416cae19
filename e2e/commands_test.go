package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"strconv"
	"strings"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// exits runs a program and checks its exit code: exits CODE PROGRAM ARG...
func exits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits CODE PROGRAM ARG...")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	got, err := 0, ts.Exec(args[1], args[2:]...)
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit):
		got = exit.ExitCode()
	case err != nil:
		ts.Fatalf("%v", err)
	}
	if got != want {
		ts.Fatalf("%s exits with %d, not %d", args[1], got, want)
	}
}

// checkJSON checks a value in the one JSON document on stdout:
// json PATH VALUE. A path is field.field, with numbers for elements of
// arrays; len is an array's length. ! json PATH: there is no such value.
func checkJSON(ts *testscript.TestScript, neg bool, args []string) {
	if neg {
		if got, err := lookUp(document(ts), args[0]); err == nil {
			ts.Fatalf("%s is %s", args[0], got)
		}
		return
	}
	if len(args) != 2 {
		ts.Fatalf("usage: json PATH VALUE")
	}
	got, err := lookUp(document(ts), args[0])
	ts.Check(err)
	if got != args[1] {
		ts.Fatalf("%s is %q, not %q", args[0], got, args[1])
	}
}

// jsonEnv sets a variable to a value in the JSON document on stdout:
// jsonenv VARIABLE PATH.
func jsonEnv(ts *testscript.TestScript, _ bool, args []string) {
	value, err := lookUp(document(ts), args[1])
	ts.Check(err)
	ts.Setenv(args[0], value)
}

func document(ts *testscript.TestScript) any {
	d := json.NewDecoder(strings.NewReader(ts.ReadFile("stdout")))
	d.UseNumber()
	var v any
	ts.Check(d.Decode(&v))
	if _, err := d.Token(); err != io.EOF {
		ts.Fatalf("stdout holds more than one JSON document")
	}
	return v
}

func lookUp(v any, path string) (string, error) {
	for name := range strings.SplitSeq(path, ".") {
		switch at := v.(type) {
		case map[string]any:
			next, ok := at[name]
			if !ok {
				return "", fmt.Errorf("there is no %s", path)
			}
			v = next
		case []any:
			if name == "len" {
				v = len(at)
				continue
			}
			i, err := strconv.Atoi(name)
			if err != nil || i < 0 || i >= len(at) {
				return "", fmt.Errorf("there is no %s", path)
			}
			v = at[i]
		default:
			return "", fmt.Errorf("there is no %s", path)
		}
	}
	return fmt.Sprint(v), nil
}

// eventually repeats a program until it succeeds: eventually PROGRAM ARG...
func eventually(ts *testscript.TestScript, neg bool, args []string) {
	for deadline := time.Now().Add(patience); ; time.Sleep(100 * time.Millisecond) {
		err := ts.Exec(args[0], args[1:]...)
		if (err == nil) != neg {
			return
		}
		if time.Now().After(deadline) {
			ts.Fatalf("%v: still %v", args, err)
		}
	}
}
