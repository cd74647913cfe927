PYTHON ?= python3
BIN := .venv/bin

.PHONY: help setup demo test long gpu oldest bench meaning check page format train clean

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

oldest: .oldest/installed  ## the tests with the oldest versions that are promised
	.oldest/bin/pytest

.oldest/installed: pyproject.toml tests/oldest.txt
	$(PYTHON) -m venv .oldest
	.oldest/bin/pip install --quiet --constraint tests/oldest.txt --editable '.[dev]'
	@touch $@

gpu: setup  ## what only a GPU can show, on the GPU of this machine (8 minutes)
	PYTHON=$(BIN)/python bash tests/gpu/device_check.sh

bench: setup  ## this machine's limits, and what cnnvis reaches of them on the demo
	$(BIN)/cnnvis bench topk demo --model demo
	$(BIN)/cnnvis bench optimize --model demo
	$(BIN)/cnnvis bench project --model demo

SECOND := outputs/second/demo.safetensors
STYLES := --style 1 --style 2 --style 3 --style 4 --style fourier

meaning: setup $(SECOND)  ## does another network recognize the class images? (20 minutes)
	$(BIN)/cnnvis optimize --model demo --layer fc8 --runs 2 $(STYLES) --run outputs/meaning
	$(BIN)/python tests/meaning.py outputs/meaning
	$(BIN)/python tests/meaning.py outputs/meaning --by $(SECOND)

$(SECOND): | setup
	mkdir -p $(@D)
	$(BIN)/python -m cnnvis_cli.demo.training --seed 1 --output $@

check: setup  ## style and types: ruff, mypy --strict
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

page: setup  ## write the tables of docs/plan.md anew, from the declared settings
	$(BIN)/python tests/docs/plan_page.py

format: setup  ## put the code into the one format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

train: setup  ## train the bundled network again (12 minutes on one core)
	$(BIN)/python -m cnnvis_cli.demo.training

clean:  ## remove what was installed and made, except outputs
	rm -rf .venv .oldest build *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
