# Each target makes .venv and installs what it needs; a second run finds it there.
#   make PYTHON=python3.12 test     another Python       make VENV=/path/to/env test     another place

PYTHON ?= python3
VENV ?= .venv
MAX_WORKERS ?= 8

BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
FOR_TESTS := $(VENV)/.installed-for-tests
PYTEST := $(BIN)/python -m pytest --quiet --numprocesses auto --maxprocesses $(MAX_WORKERS) --dist worksteal

.DEFAULT_GOAL := help
.PHONY: help install demo test test-slow test-gpu lint clean

help: ## Show what can be made
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

install: $(FOR_TESTS) ## Make .venv and install the package with all that it and its tests need

demo: $(INSTALLED) ## Make videos, train a small model on them, evaluate and profile it (about 8 minutes on a CPU)
	@$(BIN)/python tools/demo.py

test: $(FOR_TESTS) ## Run the quick tests
	@echo "Running the tests ..."
	@$(PYTEST)

test-slow: $(FOR_TESTS) ## Run the slow tests
	@echo "Running the slow tests ..."
	@$(PYTEST) -m slow

test-gpu: $(FOR_TESTS) ## Run the tests that need a GPU
	@$(BIN)/python -m pytest --quiet -m gpu

lint: $(FOR_TESTS) ## Check style and types
	@echo "Checking style (ruff) ..."
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --quiet --check .
	@echo "Checking types (mypy) ..."
	@$(BIN)/mypy

clean: ## Remove .venv, caches and build results; runs and data stay
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(INSTALLED): setup.cfg setup.py pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "videoattn needs Python 3.11 or newer, and $(PYTHON) is not; name another: make PYTHON=python3.12" >&2; exit 1; }
	@echo "Making $(VENV) with $$($(PYTHON) --version) ..."
	@$(PYTHON) -m venv $(VENV) || { echo "Python's venv module is missing (Debian: apt install python3-venv)" >&2; exit 1; }
	@echo "Installing videoattn and what it needs (1.3 GB for a CPU, more for a GPU; a minute or more) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	@touch $@
	@echo "Installed."

$(FOR_TESTS): $(INSTALLED)
	@echo "Installing what the tests need (1 GB, most of it Triton; a minute or less) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@touch $@
	@echo "Installed."
