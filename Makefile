# Every target sets up what it needs; `make demo` and `make test` are all a fresh machine needs.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && exit; done; echo python3)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: help demo test check lint types bench-removal image clean system-packages
help:  ## what there is
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | sort

$(STAMP): pyproject.toml
	@echo "setting up $(VENV) with $(PYTHON) (once; about a minute) …"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "lb-sidecar needs Python 3.11 or newer; give one with make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { echo "python's venv module is missing: install it, on Debian with apt-get install python3-venv" >&2; exit 1; }
	@$(BIN)/python -m pip install --quiet --upgrade pip
	@$(BIN)/python -m pip install --quiet -e '.[test]'
	@touch $(STAMP)

demo: $(STAMP)  ## the whole thing on this machine: instances, a real HAProxy, faults to inject, the page
	@$(BIN)/lb-sidecar demo

system-packages:
	@deploy/system-packages

test: $(STAMP) system-packages  ## all tests, on real balancers (installs haproxy and nginx if they are missing), and five million simulated facts
	@$(BIN)/python -m pytest -n auto
	@$(BIN)/python -m tests.core.schedules --seeds 20000:1000000 --facts 5000000

.PHONY: sim
sim: $(STAMP)  ## random schedules against the core: make sim SEEDS=5000:9000, or FACTS=5000000 from the first seed on
	@$(BIN)/python -m tests.core.schedules --seeds $(or $(SEEDS),$(if $(FACTS),0:1000000,0:4000)) $(if $(FACTS),--facts $(FACTS))

.PHONY: coverage
coverage: $(STAMP)  ## which judgement met which fault and which guard in 4,000 schedules; writes docs/coverage.md
	@$(BIN)/python -m tests.core.schedules --seeds 0:4000 --coverage docs/coverage.md

check: $(STAMP)  ## the fast loop: lint, types, everything but the slow tests; under a minute
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/python -m pytest -n auto -m 'not real and not slow' -x

lint: $(STAMP)  ## ruff and mypy
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

bench-removal: $(STAMP) system-packages  ## how fast a dead or hanging instance leaves each balancer
	@$(BIN)/python -m bench.removal

.PHONY: bench-engine bench-sketch bench-core
bench-engine: $(STAMP) system-packages  ## what a probe costs: ours, HAProxy, Envoy, Traefik, Caddy, blackbox exporter, a C floor; about 40 minutes
	@$(BIN)/python -m bench.engine --json $(VENV)/bench-engine.json

bench-sketch: $(STAMP)  ## what the percentiles cost, and how far off they are
	@$(BIN)/python -m bench.sketch

bench-core: $(STAMP) system-packages  ## what lies between an outcome and a decision, and from the tipping fact to HAProxy's socket
	@$(BIN)/python -m bench.core

.PHONY: bench-scrape
bench-scrape: $(STAMP)  ## what a scrape of 500 services x 20 instances costs, and how late it makes the loop; about 5 minutes
	@$(BIN)/python -m bench.scrape

.PHONY: bench-faults bench-soak
bench-faults: $(STAMP) system-packages  ## bad requests per fault, every balancer's own ways and ours: 40 minutes; QUICK=1 two minutes, FULL=1 everything, ONLY="…" RUNS=n
	@$(BIN)/python -m bench.faultlab $(if $(QUICK),--quick) $(if $(FULL),--full) $(if $(ONLY),--only $(ONLY)) $(if $(RUNS),--runs $(RUNS)) \
		--json $(VENV)/bench-faults.json --svg $(VENV)/bench-faults.svg

bench-soak: $(STAMP) system-packages  ## healthy instances and a starved sidecar: nobody may be ejected; 30 minutes, or MINUTES=n
	@$(BIN)/python -m bench.faultlab.soak --minutes $(or $(MINUTES),30)

.PHONY: chaos
chaos: $(STAMP) system-packages  ## every row of the fault matrix on real processes; writes docs/faults.md; under 20 minutes
	@$(BIN)/python -m tests.scenarios.chaos

image:  ## build the container image, with docker, podman, buildah or what IMAGE_BUILDER names
	@deploy/check-image

clean:  ## forget the environment and caches
	@rm -rf $(VENV) .mypy_cache .ruff_cache .hypothesis
