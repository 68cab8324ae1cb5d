# Two commands on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: help demo test lint drills gpu clean
.DEFAULT_GOAL := help

help:
	@echo "make demo    train a small MoE++ and its vanilla twin, write runs/demo/report.html"
	@echo "make test    lint, types, import contracts and all tests"
	@echo "make lint    lint, types and import contracts only"
	@echo "make drills  a hundred kill -9 drills of a training run"
	@echo "make gpu     on a machine with a CUDA GPU: its tests and a short training run"

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "moepp needs Python >= 3.11; set PYTHON=python3.11"'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: $(STAMP)
	$(BIN)/moepp demo

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright
	$(BIN)/lint-imports

test: lint
	$(BIN)/python -m pytest -n 2 -m "not gpu and not drill"

drills: $(STAMP)
	$(BIN)/python -m pytest -m drill

# Uses the interpreter as it is, so that it works where nothing can be installed and torch belongs to the system.
gpu:
	@$(PYTHON) -c 'import sys, torch; sys.exit(0 if torch.cuda.is_available() else "make gpu: torch sees no CUDA GPU")'
	PYTHONPATH=src $(PYTHON) -m pytest -m gpu
	PYTHONPATH=src $(PYTHON) -m moepp.commands.gpu_check

clean:
	rm -rf $(VENV) build dist
