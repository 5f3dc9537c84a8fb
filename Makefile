# skep's everyday commands. "make" alone lists them.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
MAKEFLAGS += --no-print-directory
.DEFAULT_GOAL := help

VERSION  ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
# Without this setting a Go program sends itself SIGURG, and one that came from
# outside could not be told from those.
LDFLAGS  := -s -w -X runtime.godebugDefault=asyncpreemptoff=1,containermaxprocs=0,updatemaxprocs=0 -X main.version=$(VERSION)
# The first instruction blocks every signal; see internal/entry.
ENTRY    := -E skep/internal/entry.start -checklinkname=0
# Functions begin where an instruction may, instead of at every 32nd byte: 0.14 MB less.
PACKED   := -funcalign=$(if $(filter amd64 386,$(shell go env GOARCH)),1,4)
BUILD    := CGO_ENABLED=0 go build -trimpath
# Without inlining the code is 0.3 MB smaller; docs/adr/0002-size.md.
SMALLER  := -gcflags=all=-l
# The collector for large heaps is 45 kB that a heap of 1 MB has no use for. A
# toolchain that has no other one is taken as it is.
EXPERIMENT := $(shell GOEXPERIMENT=nogreenteagc go env GOEXPERIMENT 2>/dev/null || true)
# The largest that skep may be, in bytes.
MAX_SIZE := 4500000

# How long each fuzz target runs, and how many runs a simulation makes.
FUZZTIME   ?= 30s
SIM_CHECKS ?= 20000
SIM_RUNS   ?= 200000
SEED       ?= $(shell echo $$RANDOM)
# A benchmark's or a test's name, to run only that.
BENCH ?= .
RUN   ?= .

# Packages whose tests run processes by the hundred or look at the clock: one
# after another, and not beside the others.
ALONE := ^skep/(bench|conformance|e2e|port|reaper)

STATICCHECK := honnef.co/go/tools/cmd/staticcheck@v0.8.2

.PHONY: help
help: ## List the commands
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: build
build: skep ## Build skep (static) and the example servers into build/
	@$(BUILD) -ldflags "-s -w" -o build/ ./examples/...

# Where "make skep" puts it.
OUT ?= build/skep

.PHONY: skep
skep:
	@GOEXPERIMENT=$(EXPERIMENT) $(BUILD) $(SMALLER) -tags urfave_cli_no_docs,skep_entry -ldflags "$(LDFLAGS) $(PACKED) $(ENTRY)" -o $(OUT) ./cmd/skep

.PHONY: run
run: build ## Serve the example on port 8000 with one worker per CPU
	@echo "Serving the example on http://127.0.0.1:8000/ ; ask it a few times: curl http://127.0.0.1:8000/"
	@echo "Each answer names the process that gave it. Ctrl-C stops."
	@exec build/skep -w auto -- build/hello

# The stories' results are not kept: they depend on the built program, which the
# test cache does not know of.
.PHONY: test
test: build ## Run every test this machine can run; what it cannot is named with the reason
	@go vet ./...
	@if docker version >/dev/null 2>&1; then scripts/images.sh || echo "images: not made: the tests that need them say so"; fi
	@scripts/vm.sh || echo "vm: no kernel: the tests that need it say so"
	@go run ./scripts/testsummary \
		go test -json -timeout 10m $$(go list ./... | grep -Ev '$(ALONE)') \
		-- go test -json -count=1 -p 1 -timeout 25m $$(go list ./... | grep -E '$(ALONE)')

.PHONY: e2e
e2e: build ## Run the stories of whole containers and whole commands (RUN=name for one)
	@if docker version >/dev/null 2>&1; then scripts/images.sh; fi
	@scripts/vm.sh
	@go run ./scripts/testsummary go test -json -count=1 -p 1 -timeout 25m -run '$(RUN)' ./e2e/...

.PHONY: race
race: ## Run the tests under the race detector (needs a C compiler)
	@CGO_ENABLED=1 go test -race -timeout 15m $$(go list ./... | grep -v '^skep/e2e')

.PHONY: fuzz
fuzz: ## Run every fuzz target in turn, FUZZTIME each (30s)
	@scripts/fuzz.sh $(FUZZTIME)

.PHONY: sim
sim: ## Run the random simulations long (SIM_RUNS=, SEED= for the supervisor's)
	@packages=$$(go list -f '{{range .TestImports}}{{.}} {{end}}{{range .XTestImports}}{{.}} {{end}}{{"\t"}}{{.ImportPath}}' ./... | \
		awk -F '\t' '$$1 ~ /pgregory.net\/rapid / { print $$2 }'); \
	if [[ -z "$$packages" ]]; then echo "sim: no package has random simulations"; exit 0; fi; \
	go test -count=1 -timeout 60m $$packages -rapid.checks=$(SIM_CHECKS)
	@go test -count=1 -timeout 60m ./initd/supervise -run 'TestSimulation$$' -sim.runs=$(SIM_RUNS) -sim.seed=$(SEED)

# How long "make soak" keeps the load up.
SOAK ?= 10m

.PHONY: soak
soak: build ## Run the FastAPI stories in 512 MiB under load for SOAK each (10m)
	@scripts/images.sh
	@go test -count=1 -v -timeout 60m -run 'TestFastAPI' ./e2e -fastapi.load $(SOAK)

# How many workers are killed and replaced.
CYCLES ?= 10000

.PHONY: cycles
cycles: ## Kill CYCLES workers (10000, about five minutes) and see that nothing is left of them
	@go test -count=1 -timeout 60m ./initd -run 'TestCyclesLeakNothing$$' -v -cycles $(CYCLES) | grep -v 'skep: '

# Flags of the benchmark beside the peers, such as -rows tail,crash -runs 3.
ARGS ?=

.PHONY: bench
bench: build ## Measure skep beside its peers and write docs/benchmarks.md (about an hour; ARGS="-rows tail" or "-resume")
	@go run ./bench $(ARGS)

.PHONY: bench-quick
bench-quick: build ## The same in under five minutes, into build/bench: proves the harness, not the figures
	@go run ./bench -quick $(ARGS)

.PHONY: bench-go
bench-go: ## Run the Go benchmarks (BENCH=name for one)
	@go test -run '^$$' -bench '$(BENCH)' -benchmem $$(go list ./... | grep -v '^skep/e2e')

.PHONY: size
size: build ## Show skep's size, its modules and its memory; fails over 4.5 MB
	@scripts/size.sh build/skep $(MAX_SIZE)

.PHONY: lint
lint: ## Check formatting and common mistakes, and the rules of this house
	@unformatted=$$(gofmt -l $$(git ls-files '*.go')); \
	if [[ -n "$$unformatted" ]]; then echo "lint: not formatted by gofmt:"; echo "$$unformatted"; exit 1; fi
	@go vet ./...
	@go run $(STATICCHECK) ./...
	@for script in $$(git ls-files '*.sh') .ci/run; do bash -n $$script; done
	@go test -count=1 ./internal/house

.PHONY: deps
deps: ## Install what the tests need beside Go (Debian, root)
	@scripts/deps.sh

.PHONY: images
images: ## Make the Docker images that the tests start from; needs no registry
	@scripts/images.sh

.PHONY: clean-images
clean-images: ## Remove the test images, and containers that tests left
	@scripts/images.sh clean

.PHONY: docs
docs: ## Check the links in the documents; write every package's Go docs to build/docs
	@go test -count=1 -run 'Links' ./internal/house
	@mkdir -p build/docs
	@for package in $$(go list ./...); do \
		go doc -all $$package > build/docs/$$(echo $$package | tr / .).txt; done
	@echo "docs: links are good; build/docs has the Go documentation as text"
