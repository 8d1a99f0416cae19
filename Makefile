# Everything is built from Debian's packages, Go modules and npm packages;
# docs/testing.md tells the rungs of the tests.

GO      ?= go
ARCH    ?= $(shell $(GO) env GOARCH)
VERSION ?= dev
STATIC  := CGO_ENABLED=0 GOOS=linux GOARCH=$(ARCH)
LDFLAGS := -s -w -X github.com/vmsan/vmsan/internal/cli.Version=$(VERSION)
AGENT   := internal/agent/binary/dist/vmsan-agent

.PHONY: build
build:
	$(STATIC) $(GO) build -trimpath -ldflags '-s -w' -o $(AGENT) ./cmd/vmsan-agent
	sha256sum $(AGENT) | cut -d' ' -f1 > $(AGENT).sha256
	$(STATIC) $(GO) build -trimpath -ldflags '$(LDFLAGS)' -o bin/vmsan ./cmd/vmsan
