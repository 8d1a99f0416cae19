#!/bin/sh
# What CI runs beside the tests on real machines: none of it needs root, a
# machine or a network beyond the Go module proxy.
set -eu
cd "$(dirname "$0")/.."

say() { echo "== $*"; }

say gofmt
unformatted=$(git ls-files '*.go' | xargs gofmt -l)
[ -z "$unformatted" ] || { echo "gofmt would change: $unformatted"; exit 1; }

say go vet, both architectures
go vet ./...
GOARCH=arm64 go vet ./...

say staticcheck
go tool staticcheck ./...

say go mod tidy
go mod tidy -diff

say cross-compile for arm64
for command in vmsan vmsan-agent; do
	CGO_ENABLED=0 GOARCH=arm64 go build -trimpath -o /dev/null ./cmd/$command
done

say race tests
go test -race -timeout 10m ./...

say changelog
for change in changelog/unreleased/*.md; do
	head -1 "$change" | grep -Eq '^(Enhancement|Bugfix): .' && [ -z "$(sed -n 2p "$change")" ] || { echo "$change has no title"; exit 1; }
done

say generated files
if command -v protoc >/dev/null; then
	go generate ./...
fi
changed=$(git status --porcelain)
[ -z "$changed" ] || { echo "changed by generating, or not committed:"; echo "$changed"; git diff --stat; exit 1; }
