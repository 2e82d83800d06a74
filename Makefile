.DEFAULT_GOAL := help
.PHONY: help setup run lint test clean
.DELETE_ON_ERROR:

export FLWR_TELEMETRY_ENABLED := 0
export RAY_USAGE_STATS_ENABLED := 0

BIN := .venv/bin
STAMP := .venv/.fedgen-installed
IS_PYTHON := -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
PYTHON ?= $(shell for p in python3.11 python3; do $$p $(IS_PYTHON) && echo $$p && break; done)

help: ## explain the targets (a bare make)
	@echo "fedgen: make TARGET [VARIABLE=value]"
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  %-7s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo "Variables: PYTHON=path of the Python 3.11 or later that setup uses, DATA, SLOW"

setup: $(STAMP) ## create .venv and install fedgen into it, with the tested versions

$(STAMP): pyproject.toml constraints.txt
	@$(or $(PYTHON),false) $(IS_PYTHON) || { \
	  echo "fedgen needs Python 3.11 or later, and did not find it as $(or $(PYTHON),python3.11 or python3)." \
	    "Install it (Debian: apt install python3 python3-venv), or name it: make $(MAKECMDGOALS) PYTHON=/path/to/python" >&2; \
	  exit 1; }
	$(PYTHON) -m venv .venv
	@echo "Installing fedgen and what it needs into .venv: a few minutes the first time."
	$(BIN)/pip install -qq --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

run: setup ## train 100 clients on digits (examples/quickstart.toml) and write a report
	$(BIN)/fedgen run examples/quickstart.toml

lint: setup ## check style, format, types and the subjects of new commits
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python .ci/subjects.py

test: lint ## lint, then run all tests: DATA=DIR adds those that need the data directory, SLOW=1 the long ones
	$(if $(DATA),FEDGEN_DATA_DIR="$$(cd '$(DATA)' && pwd)" && export FEDGEN_DATA_DIR &&) $(BIN)/pytest -n auto --maxprocesses 4 --dist loadgroup $(if $(SLOW),-m '')

clean: ## remove .venv, caches and build artefacts; runs/ stays
	rm -rf .venv build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find clients fedgen server tests -name __pycache__ -exec rm -rf {} +
