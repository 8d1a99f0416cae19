# Everything here is made from Debian's packages, Go modules and npm packages.
# `make demo` and `make test` do all the set-up they need, as root, from a
# clean clone; docs/testing.md tells the rungs of the tests.

GO      ?= go
ARCH    ?= $(shell $(GO) env GOARCH)
VERSION ?= dev
# A prepared state directory. Tests make copies beside it, by hard links.
STATE   ?= $(CURDIR)/.state/main

GOBUILD := CGO_ENABLED=0 GOOS=linux GOARCH=$(ARCH) $(GO) build -trimpath
BIN     ?= bin/vmsan
AGENT   := internal/agent/binary/dist/vmsan-agent
TESTENV := VMSAN_TEST_ROOT=1 VMSAN_TEST_STATE=$(STATE) VMSAN_TEST_BINARY=$(CURDIR)/bin/vmsan

# The packages that vmsan itself needs on a Debian host, and those that only
# its tests need.
PACKAGES := qemu-system-x86 mmdebstrap e2fsprogs
# libprotobuf-dev has the types that ours import; clones are tested on file
# systems that share blocks.
TESTPKGS := git gcc libc6-dev btrfs-progs xfsprogs busybox-static tmux nodejs npm iproute2 nftables iptables procps protobuf-compiler libprotobuf-dev man-db
# The floor of networks is made of commands.
BENCHPKGS := iptables iproute2 procps

.PHONY: help
help:
	@echo 'make build   bin/vmsan, one static binary'
	@echo 'make demo    build, set up, and run a command in a microVM (root)'
	@echo 'make test    all tests, on real machines (root)'
	@echo 'make check   what needs no machine: format, lint, race, generated files'
	@echo 'make docs    the pages that are written from tables'
	@echo 'make dist    Debian packages, archives, lists of what is in them, digests'
	@echo 'make bench   speed and size, each beside its floor (root)'
	@echo 'make load    twenty and two hundred sandboxes at once, and many saves (root)'
	@echo 'make soak    a hundred cold boots on a busy host, and half an hour of sandboxes (root)'
	@echo 'make faults  death, errors and hangs at every step, 500 random kills, hostile guests (root)'
	@echo 'make race    the tests with the race detector in them and in vmsan (root)'
	@echo 'make fuzz    every decoder of foreign bytes, a minute each'

.PHONY: build
build:
	$(GOBUILD) -ldflags '-s -w' -o $(AGENT) ./cmd/vmsan-agent
	sha256sum $(AGENT) | cut -d' ' -f1 > $(AGENT).sha256
	$(GOBUILD) -ldflags '-s -w -X github.com/vmsan/vmsan/internal/cli.Version=$(VERSION)' -o $(BIN) ./cmd/vmsan

.PHONY: deps
deps:
	build/apt-install.sh $(PACKAGES) $(TESTPKGS)
	cd test/e2b && npm ci --no-audit --no-fund --loglevel=error

.PHONY: runtime-deps
runtime-deps:
	build/apt-install.sh $(PACKAGES)

.PHONY: setup
setup: build
	bin/vmsan --dir $(STATE) setup

.PHONY: demo
demo: runtime-deps setup
	bin/vmsan --dir $(STATE) run --network none -- /bin/sh -c 'echo "Hello from a microVM with its own kernel:"; uname -a'

# What most tests' sandboxes start from, instead of booting.
.PHONY: templates
templates: setup
	bin/vmsan --dir $(STATE) template prune
	bin/vmsan --dir $(STATE) template create --network none
	bin/vmsan --dir $(STATE) template create --memory 128
	bin/vmsan --dir $(STATE) template create --memory 128 --network none

# Of the tests that run at once in a package, one mostly waits.
.PHONY: test
test: deps templates
	$(TESTENV) $(GO) test -timeout 60m -count 1 -p 2 -parallel $$(($$(nproc) + 1)) ./...

.PHONY: load
load: setup
	$(TESTENV) VMSAN_TEST_LOAD=1 $(GO) test -timeout 30m -count 1 -v -run 'TestTwentyAtOnce|TestTwoHundred|TestCycles|TestKilledWhileSaving' ./e2e

.PHONY: docs
docs:
	$(GO) test ./api -run Page -update

.PHONY: check
check:
	build/check.sh

.PHONY: bench
bench: runtime-deps setup
	build/apt-install.sh $(BENCHPKGS)
	$(GO) run ./bench -vmsan bin/vmsan -state $(STATE)

# What is published has a version that Debian can order, and the time of its
# commit. The agent of this machine's own kind is made last: tests need that.
ARCHS       ?= amd64 arm64
EPOCH        = $(shell git log -1 --format=%ct)
DISTVERSION  = $(if $(filter dev,$(VERSION)),0.0.0~git$(shell date -u -d @$(EPOCH) +%Y%m%d).$(shell git rev-parse --short=12 HEAD),$(VERSION))

.PHONY: dist
dist:
	rm -rf dist
	for arch in $(ARCHS); do $(MAKE) build ARCH=$$arch BIN=dist/build/$$arch/vmsan VERSION=$(DISTVERSION) || exit; done
	$(MAKE) build
	SOURCE_DATE_EPOCH=$(EPOCH) $(GO) run ./build/dist -version $(DISTVERSION) -binaries dist/build -out dist
	rm -r dist/build

# The package of this machine's kind is installed, used, upgraded and purged.
.PHONY: dist-test
dist-test: setup
	build/apt-install.sh man-db
	$(TESTENV) $(GO) test -count 1 ./build/dist

.PHONY: soak
soak: runtime-deps setup
	$(GO) run ./bench -vmsan bin/vmsan -state $(STATE) -soak 100
	$(TESTENV) VMSAN_TEST_LOAD=1 $(GO) test -timeout 50m -count 1 -v -run 'TestSoak' ./e2e

.PHONY: faults
faults: setup
	$(TESTENV) VMSAN_TEST_FAULTS=1 $(GO) test -timeout 90m -count 1 -v -run 'TestFaults|TestKills|TestHostileGuests' ./e2e

# The whole of make test, with the race detector in the tests, and in vmsan's
# commands and monitors. What they find is in the log, for many of them end
# after who started them.
RACELOG := $(CURDIR)/.state/races
.PHONY: race
race: deps templates
	CGO_ENABLED=1 $(GO) build -race -tags netgo,osusergo -ldflags '-linkmode external -extldflags -static' -o bin/race/vmsan ./cmd/vmsan
	rm -rf $(RACELOG) && mkdir -p $(RACELOG)
	$(TESTENV) VMSAN_TEST_BINARY=$(CURDIR)/bin/race/vmsan GORACE='log_path=$(RACELOG)/race' \
		$(GO) test -race -timeout 90m -count 1 -p 2 ./...; result=$$?; ! cat $(RACELOG)/* 2>/dev/null && exit $$result

.PHONY: fuzz
fuzz:
	build/fuzz.sh

.PHONY: clean
clean:
	rm -rf bin dist .state $(AGENT) $(AGENT).sha256
