# What a person types; .ci/run types the same.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PEERS := $(VENV)/.peers
PIP := PIP_CONSTRAINT=constraints.txt PIP_BUILD_CONSTRAINT=constraints.txt $(BIN)/python -m pip -qq --disable-pip-version-check --no-input
PYTEST := $(BIN)/python -m pytest
# Much of a test is waiting, so one more than there are cores.
JOBS ?= 3

.DEFAULT_GOAL := help
.PHONY: help demo test check fmt bench soak docs clean

help:
	@echo "make demo    train a small model, kill it again and again, prove that nothing was lost (3 minutes)"
	@echo "make test    format, lint, types, layering, then every test"
	@echo "make check   format, lint, types and layering only"
	@echo "make fmt     put every file into the project's format"
	@echo "make bench   measure saves, loads and stalls"
	@echo "make soak    the long form of the fault campaigns"
	@echo "make docs    write the pages that are generated from the code"
	@echo "make clean   remove what make made, the environment included"

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "holdfast needs Python 3.11 or newer, and $(PYTHON) is $$($(PYTHON) -V 2>&1);"; \
	    echo "name another one: make PYTHON=python3.12 ..."; exit 1; }
	@$(PYTHON) -m venv $(VENV)

$(STAMP): $(BIN)/python pyproject.toml constraints.txt
	@echo "installing into $(VENV); the first time takes a few minutes, torch is large" >&2
	@$(PIP) install --editable '.[torch,dev]'
	@touch $@

$(PEERS): $(STAMP)
	@echo "installing what the benchmarks compare with" >&2
	@$(PIP) install --editable '.[bench]'
	@touch $@

demo: $(STAMP)
	@$(BIN)/holdfast demo

check: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy --strict
	$(PYTEST) -q tests/guards/test_layering.py

test: check
	$(PYTEST) -q -n $(JOBS) --dist worksteal -m "not soak"

fmt: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: SHELL := bash
bench: .SHELLFLAGS := -o pipefail -c
bench: $(PEERS)
	@mkdir -p build
	@{ cat benchmarks/README.md; echo; for script in benchmarks/*.py; do $(BIN)/python -W ignore $$script || exit 1; done; } \
	  | tee build/benchmarks.md
	@mv build/benchmarks.md docs/benchmarks.md

soak: $(STAMP)
	$(PYTEST) -q -n $(JOBS) -m soak --timeout 7200

docs: $(STAMP)
	$(BIN)/python scripts/error_table.py --write docs/errors.md
	$(BIN)/python scripts/cli_surface.py --write tests/guards/cli_surface.txt

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
