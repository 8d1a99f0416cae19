#!/bin/sh
# Runs each fuzz target for a while: FUZZTIME, by default a minute. What a run
# finds stays in the package's testdata/fuzz, to be committed with its mending.
# Inputs that reach new code, and those that fail, are made smaller with a
# hundred tries each: by default a minute is spent on every one of them, and
# nothing else is tried meanwhile.
set -eu
cd "$(dirname "$0")/.."
time=${FUZZTIME:-60s}
log=$(mktemp)
trap 'rm -f "$log"' EXIT
for package in $(git grep -l '^func Fuzz' -- '*_test.go' | xargs -n 1 dirname | sort -u); do
	for target in $(git grep -h '^func Fuzz' -- ":(glob)$package/*_test.go" | sed 's/^func \(Fuzz[A-Za-z0-9_]*\).*/\1/'); do
		echo "== $package $target"
		if ! ${GO:-go} test -run '^$' -fuzz "^$target\$" -fuzztime "$time" -fuzzminimizetime 100x "./$package" >"$log" 2>&1; then
			# Go now and then takes the end of the time for a failure, of no input.
			if grep -q 'Failing input' "$log" || ! grep -q 'context deadline exceeded' "$log"; then
				cat "$log"
				exit 1
			fi
		fi
		grep execs: "$log" | tail -n 1
	done
done
