# For users and developers alike. `make` alone lists the targets.
SHELL := /bin/sh
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

BIN := .venv/bin
DEBIAN := .build/debian.stamp
VENV := .build/venv.stamp
DRIVER := .build/driver.stamp

# Off in flake8-async: 9xx (a checkpoint in every function), 109 (a client's deadline parameter), 110
# (a pause between tries of something outside), 119 and 121 (our own context managers and returns),
# 114, 124 and 128 (started by another function, or a protocol's method that need not wait).
ASYNC_OFF := ASYNC9,ASYNC109,ASYNC110,ASYNC114,ASYNC119,ASYNC121,ASYNC124,ASYNC128

.PHONY: help setup demo test test-parts test-whole check format lint types layers lock clean bench-link bench-submit \
	bench-queue bench-adapters bench-recovery bench-soak bench-console simulate crash

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(DRIVER) ## make .venv/ and everything else; all other targets begin with it

demo: setup ## the main job on this machine: keys, banks, tasks, one pooling round
	@$(BIN)/fep demo $(DEMO)

# Real processes, and the simulation: they measure no coverage, so that nothing is traced in them.
WHOLE := tests/system tests/crash tests/simulation tests/bench tests/browser tests/attacks
# Parts that mostly wait for a card or a token: they run behind the whole, so that both halves are as long.
WAITING := tests/keys
COVERAGE = $(BIN)/coverage run --data-file=.coverage.$@ -m pytest -q

test: setup ## every test, in two halves at once; branch coverage of the parts
	@$(BIN)/coverage erase
	$(MAKE) --no-print-directory --jobs=2 test-parts test-whole
	@$(BIN)/coverage combine -q
	$(BIN)/coverage report

test-parts: setup ## tests of the parts but the keys, with branch coverage
	$(COVERAGE) $(WHOLE:%=--ignore=%) $(WAITING:%=--ignore=%) $(PYTEST)

test-whole: setup ## tests of the whole: real processes, crashes, the simulation, benches; and of the keys
	$(BIN)/python -m pytest -q $(WHOLE) $(PYTEST)
	$(COVERAGE) $(WAITING) $(PYTEST)

check: setup lint types layers test ## what developers run before a commit

format: setup ## rewrite the code in the project's form
	$(BIN)/ruff format . && $(BIN)/ruff check --fix .

lint: setup ## form and lint
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	git ls-files 'fep/*.py' 'bank_adapters/*.py' 'bench/*.py' | xargs $(BIN)/flake8 --select=ASYNC --extend-ignore=$(ASYNC_OFF)

types: setup ## mypy, strict
	$(BIN)/mypy

layers: setup ## import contracts
	$(BIN)/lint-imports

simulate: setup ## the whole daemon in virtual time: SEEDS=300 FROM=0
	@$(BIN)/python -m tests.simulation --seeds $(or $(SEEDS),300) --from $(or $(FROM),0)

crash: setup ## real processes, killed and starved: ROUNDS=30 FROM=1 LANES=2
	@$(BIN)/python -m tests.crash --rounds $(or $(ROUNDS),30) --from $(or $(FROM),1) \
		--lanes $(or $(LANES),2)

bench-link: setup ## added latency of a bank link over a raw socket
	@$(BIN)/python -m bench.link $(BENCH)

bench-submit: setup ## acknowledged submits a second, at 1, 16 and 64 clients
	@$(BIN)/python -m bench.submit $(BENCH)

bench-queue: setup ## fep beside beanstalkd, Redis and PostgreSQL as a durable queue
	@$(BIN)/python -m bench.queue $(BENCH)

bench-adapters: setup ## what each adapter's codec costs, beside lxml's bare parse
	@$(BIN)/python -m bench.adapters $(BENCH)

bench-recovery: setup ## a million waiting tasks: memory, restart, submits
	@$(BIN)/python -m bench.recovery $(BENCH)

bench-soak: setup ## memory and files of the daemon over minutes of full cycles
	@$(BIN)/python -m bench.soak $(BENCH)

bench-console: setup ## the console's pages, and what live viewers cost the queue
	@$(BIN)/python -m bench.console $(BENCH)

lock: setup ## remake the hashed requirement files from pyproject.toml
	requirements/lock.sh

clean: ## remove what set-up and tests made here
	rm -rf .venv .build .coverage .hypothesis .mypy_cache .ruff_cache .import_linter_cache

$(DEBIAN): requirements/debian.txt requirements/setup.sh
	@requirements/setup.sh debian
	@mkdir -p .build && touch $@

$(VENV): $(DEBIAN) requirements/build.txt requirements/all.txt pyproject.toml
	@requirements/setup.sh venv
	@touch $@

$(DRIVER): $(VENV) fep/sandbox/ukey/ifd_vslot.c
	@$(BIN)/python -m fep.sandbox.ukey.build
	@touch $@
