#!/bin/sh
# Runs each fuzz target for a while: FUZZTIME, by default a minute. What a run
# finds stays in the package's testdata/fuzz, to be committed with its mending.
# Inputs that reach new code, and those that fail, are made smaller with a
# hundred tries each: by default a minute is spent on every one of them, and
# nothing else is tried meanwhile.
set -eu
cd "$(dirname "$0")/.."
time=${FUZZTIME:-60s}
for package in $(git grep -l '^func Fuzz' -- '*_test.go' | xargs -n 1 dirname | sort -u); do
	for target in $(git grep -h '^func Fuzz' -- ":(glob)$package/*_test.go" | sed 's/^func \(Fuzz[A-Za-z0-9_]*\).*/\1/'); do
		echo "== $package $target"
		${GO:-go} test -run '^$' -fuzz "^$target\$" -fuzztime "$time" -fuzzminimizetime 100x "./$package"
	done
done
