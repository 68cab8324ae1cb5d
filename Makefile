# Two commands on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: help demo test lint drills bench gpu clean
.DEFAULT_GOAL := help

help:
	@echo "make demo    train a small MoE++ and its vanilla twin, write runs/demo/report.html"
	@echo "make test    lint, types, import contracts and all tests"
	@echo "make lint    lint, types and import contracts only"
	@echo "make drills  a hundred kill -9 drills of a training run"
	@echo "make bench   measure this machine's CPU, write benchmarks/results and docs/performance.md; keep it idle meanwhile"
	@echo "make gpu     on a machine with a CUDA GPU: its tests, a short training run and its benchmarks"

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

RESULTS := benchmarks/results

runs/demo/report.html:
	$(MAKE) demo

bench: $(STAMP) runs/demo/report.html
	mkdir -p $(RESULTS)
	$(BIN)/moepp bench experts --sizes 0.6b --tokens 256,2048,8192 --dtype float32,bfloat16 --tau none --peers eager,grouped_mm,longcat_flash --seconds 12 --json $(RESULTS)/cpu-experts-0.6b.json
	$(BIN)/moepp bench experts --sizes 7b --tokens 256,2048,8192 --tau none --peers grouped_mm --seconds 20 --json $(RESULTS)/cpu-experts-7b.json
	$(BIN)/moepp bench layer --sizes 0.6b --tokens 256,2048,8192 --dtype float32,bfloat16 --seconds 25 --json $(RESULTS)/cpu-layer.json
	$(BIN)/moepp bench layer --sizes 7b --tokens 2048 --dtype float32,bfloat16 --seconds 30 --json $(RESULTS)/cpu-layer-7b.json
	$(BIN)/moepp bench router --sizes 0.6b --tokens 2048,8192 --dtype float32,bfloat16 --tau 0.75 --seconds 10 --json $(RESULTS)/cpu-router.json
	$(BIN)/moepp bench decode --sizes 0.6b --tokens 1,8 --dtype float32,bfloat16 --tau 0.75 --backends auto,int8,int4 --peers eager,grouped_mm,batched_mm --seconds 10 --json $(RESULTS)/cpu-decode.json
	$(BIN)/moepp bench decode --sizes 7b --tokens 1,8 --dtype bfloat16 --tau 0.75 --peers grouped_mm --seconds 10 --json $(RESULTS)/cpu-decode-7b.json
	$(BIN)/moepp bench train --sizes 0.6b --tokens 256,2048,8192 --tau 0.75 --peers eager,grouped_mm --seconds 25 --json $(RESULTS)/cpu-train.json
	$(BIN)/moepp bench experts --paper --dtype float32,bfloat16 --seconds 5 --json $(RESULTS)/cpu-paper-a.json
	$(BIN)/moepp bench router --paper --dtype float32,bfloat16 --seconds 5 --json $(RESULTS)/cpu-paper-b.json
	$(BIN)/moepp bench layer --routing learned --model runs/demo --tokens 256,2048 --seconds 5 --json $(RESULTS)/cpu-learned.json
	$(BIN)/moepp bench model --sizes 0.6b --tasks training --models moepp:auto,vanilla:auto,transformers:grouped_mm,transformers:moepp_auto --json $(RESULTS)/cpu-model.json
	$(BIN)/moepp bench model --sizes 0.6b --tasks generation --models moepp:auto,vanilla:auto,transformers:grouped_mm,transformers:moepp_auto --json $(RESULTS)/cpu-generation.json
	$(BIN)/moepp bench report $(RESULTS)

# Uses the interpreter as it is, so that it works where nothing can be installed and torch belongs to the system.
gpu:
	@$(PYTHON) -c 'import sys, torch; sys.exit(0 if torch.cuda.is_available() else "make gpu: torch sees no CUDA GPU")'
	PYTHONPATH=src $(PYTHON) -m pytest -m gpu
	PYTHONPATH=src $(PYTHON) -m moepp.commands.gpu_check
	PYTHONPATH=src $(PYTHON) -m moepp.commands.gpu_bench

clean:
	rm -rf $(VENV) build dist
