# pgproxy: "make" lists what there is to make.

GO ?= go
FUZZTIME ?= 10s
TEST_FLAGS ?=
DEMO_FLAGS ?=
BENCH_FLAGS ?=
COMPAT_FLAGS ?=

# PG=17 or 18 runs the tests against that version, fetched into .tools.
PG ?=
ifneq ($(filter 17 18,$(PG)),)
export PGPROXY_PG_BIN := $(CURDIR)/.tools/pg$(PG)/bin
endif

GOLANGCI_VERSION := v2.15.0
EXPORTER_VERSION := v0.12.1
GOVULNCHECK_VERSION := v1.9.0
TOOLS := $(CURDIR)/.tools
GOLANGCI := $(TOOLS)/golangci-lint-$(GOLANGCI_VERSION)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: deps
deps: ## install what is missing (gcc, PostgreSQL 15, slapd; apt-get, as root)
	@command -v $(GO) >/dev/null || { echo "Go 1.26 or newer is needed: see go.dev/doc/install" >&2; exit 1; }
	@$(if $(filter 17 18,$(PG)),.ci/postgres $(PG))
	@.ci/install base

.PHONY: build
build: deps ## build bin/pgproxy
	$(GO) build -o bin/pgproxy ./cmd/pgproxy

.PHONY: run
run: build ## a throwaway primary, two replicas and pgproxy in front (DEMO_FLAGS="-for 20s")
	bin/pgproxy demo $(DEMO_FLAGS)

.PHONY: test
test: deps ## go vet and all tests, race detector on, against a real cluster
	$(GO) vet ./...
	$(GO) test -race -timeout 9m $(TEST_FLAGS) ./...
	@if [ -e /usr/include/security/pam_appl.h ]; then \
		$(GO) test -tags pam -timeout 2m -run PAM $(TEST_FLAGS) ./auth; \
	else echo "SKIPPED: the test of PAM (apt-get install libpam0g-dev)"; fi

.PHONY: race
race: deps ## the tests again, nothing taken from the cache
	$(GO) test -race -count=1 -timeout 9m $(TEST_FLAGS) ./...

.PHONY: lint
lint: $(GOLANGCI) ## gofmt, go vet and golangci-lint (built once into .tools)
	@bad=$$(gofmt -l $$(find . -name '*.go' -not -path './.*')); \
	if [ -n "$$bad" ]; then echo "gofmt would change:" >&2; echo "$$bad" >&2; exit 1; fi
	$(GO) vet ./...
	$(GOLANGCI) run ./...

$(GOLANGCI):
	@mkdir -p $(TOOLS)
	GOBIN=$(TOOLS) GOFLAGS= $(GO) install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$(GOLANGCI_VERSION)
	@mv $(TOOLS)/golangci-lint $@

.PHONY: fuzz
fuzz: deps ## every fuzz target for FUZZTIME (10s)
	@set -e; $(GO) list -f '{{.ImportPath}} {{.Dir}}' ./... | while read -r pkg dir; do \
		for target in $$(sed -n 's/^func \(Fuzz[A-Za-z0-9_]*\)(.*/\1/p' "$$dir"/*_test.go 2>/dev/null); do \
			echo "== $$pkg $$target"; \
			$(GO) test -run '^$$' -fuzz "^$$target\$$" -fuzztime $(FUZZTIME) "$$pkg" </dev/null; \
		done; \
	done

.PHONY: faults
faults: deps ## ledgers under switchovers and crashes, and every fault for 20 s (PG=15, 17 or 18)
	PGPROXY_FAULTS=1 $(GO) test -count=1 -timeout 60m -v -run 'Ledger|Fault' $(TEST_FLAGS) ./cmd/pgproxy

.PHONY: patroni
patroni: ## switchovers and a killed leader under Debian's Patroni and etcd
	@.ci/install patroni
	$(GO) test -count=1 -timeout 20m -v -run Patroni $(TEST_FLAGS) ./cmd/pgproxy -patroni 3

# DRIVERS="go python" runs the programs of these languages only, and
# DRIVERS_SETUP=60s skips a language that takes longer to install.
DRIVERS ?=
DRIVERS_SETUP ?=
empty :=
space := $(empty) $(empty)

.PHONY: drivers
drivers: deps ## programs with drivers of five languages, directly and through pgproxy
	PGPROXY_DRIVERS=$(CURDIR)/.drivers PGPROXY_DRIVERS_SETUP=$(DRIVERS_SETUP) $(GO) test -race -count=1 -v -timeout 40m \
		-run '$(if $(DRIVERS),TestDriversPrograms/^($(subst $(space),|,$(strip $(DRIVERS))))$$,Drivers)' ./cmd/pgproxy/...

.PHONY: compat
compat: deps ## the test suites of pgx and lib/pq, directly and through pgproxy (COMPAT_FLAGS)
	$(GO) run ./compat/run $(COMPAT_FLAGS)

# The second one comes without the versions that it asks for: they need a compiler.
.PHONY: exporter
exporter: deps ## scrape the console with two exporters of PgBouncer (the first, if the module proxy has it)
	@mkdir -p $(TOOLS)
	GOBIN=$(TOOLS) GOFLAGS= $(GO) install github.com/prometheus-community/pgbouncer_exporter@$(EXPORTER_VERSION) || \
		echo "pgbouncer_exporter cannot be had: going on without it" >&2
	test -x $(TOOLS)/exporter/bin/pgbouncer-exporter || { python3 -m venv $(TOOLS)/exporter && \
		$(TOOLS)/exporter/bin/pip install --quiet --disable-pip-version-check --no-deps prometheus-pgbouncer-exporter==2.1.2 \
			psycopg2-binary==2.9.13 prometheus-client==0.26.0 python-json-logger==4.2.0 PyYAML==6.0.4; }
	PGBOUNCER_EXPORTER=$$(ls $(TOOLS)/pgbouncer_exporter 2>/dev/null) PGBOUNCER_EXPORTER_PYTHON=$(TOOLS)/exporter/bin/pgbouncer-exporter \
		$(GO) test -count=1 -v -run TestExporter ./cmd/pgproxy

.PHONY: causality
causality: deps ## reads checked against writes over late and paused replicas, for ten minutes
	$(GO) test -race -count=1 -v -timeout 20m -run TestCausality ./cmd/pgproxy -causality 10m

.PHONY: bench
bench: ## side by side with every other pooler that is installed (BENCH_FLAGS)
	@.ci/install bench
	$(GO) run ./bench/run $(BENCH_FLAGS)

.PHONY: fingerprint
fingerprint: deps ## 10,000 random sessions: the next client finds nothing of them
	PGPROXY_FINGERPRINTS=10000 $(GO) test -count=1 -timeout 90m -run TestFingerprint ./proxy

.PHONY: vuln
vuln: ## known vulnerabilities in what is linked in (govulncheck)
	GOFLAGS= $(GO) run golang.org/x/vuln/cmd/govulncheck@$(GOVULNCHECK_VERSION) ./...

.PHONY: check
check: test lint ## what continuous integration checks

.PHONY: clean
clean: ## remove what was built
	rm -rf bin .tools .bench .drivers
