PYTHON ?= python3
BIN := .venv/bin

.PHONY: help setup demo test long bench check format train clean

help:  ## what can be made
	@grep -E '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 10

setup: .venv/installed  ## create .venv with cnnvis and its tools in it

.venv/installed: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "cnnvis needs Python 3.11 or later; name one with make PYTHON=python3.12")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --editable '.[dev]'
	@touch $@

demo: setup  ## the whole pipeline on the bundled network; ends by naming the pictures
	$(BIN)/cnnvis demo

test: setup  ## the tests
	$(BIN)/pytest

long: setup  ## the long forms of some tests (minutes)
	$(BIN)/pytest -m long -s

bench: setup  ## this machine's limits, and what topk reaches of them on the demo's images
	$(BIN)/cnnvis bench topk demo --model demo

check: setup  ## style and types: ruff, mypy --strict
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup  ## put the code into the one format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

train: setup  ## train the bundled network again (12 minutes on one core)
	$(BIN)/python -m cnnvis_cli.stages.train_demo

clean:  ## remove what was installed and made, except outputs
	rm -rf .venv build *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
