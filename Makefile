PYTHON ?= python3
BIN := .venv/bin
MODEL ?= squeezenet1_0

.PHONY: help setup demo showcase test long gpu oldest bench meaning check page figures format train evolution clean

help:  ## list these targets
	@grep -E '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 10

setup: .venv/installed  ## create .venv with cnnvis and its tools in it

.venv/installed: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "cnnvis needs Python 3.11 or later; name one with make PYTHON=python3.12")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --editable '.[dev]'
	@touch $@

demo: setup  ## run the whole pipeline on the bundled network and name the pictures
	$(BIN)/cnnvis demo

showcase: setup  ## a web site: DATASET=photographs WEIGHTS=file [MODEL=squeezenet1_0] [ARGS='--licence FILE']
	@test -n "$(DATASET)" && test -n "$(WEIGHTS)" || { echo "make showcase: name DATASET=photographs and WEIGHTS=file" >&2; exit 2; }
	$(BIN)/python docs/showcase.py "$(DATASET)" --weights "$(WEIGHTS)" --model $(MODEL) $(ARGS)

test: setup  ## run the tests
	$(BIN)/pytest

long: setup  ## run the long forms of some tests (minutes)
	$(BIN)/pytest -m long -s

oldest: .oldest/installed  ## run the tests with the oldest supported versions
	.oldest/bin/pytest

.oldest/installed: pyproject.toml tests/oldest.txt
	$(PYTHON) -m venv .oldest
	.oldest/bin/pip install --quiet --constraint tests/oldest.txt --editable '.[dev]'
	@touch $@

gpu: setup  ## check cnnvis on this machine's GPU (8 minutes)
	PYTHON=$(BIN)/python bash tests/gpu/device_check.sh

bench: setup  ## measure this machine, and how near cnnvis comes to its limits on the demo
	$(BIN)/cnnvis bench topk demo --model demo
	$(BIN)/cnnvis bench optimize --model demo
	$(BIN)/cnnvis bench project --model demo

SECOND := outputs/second/demo.safetensors
STYLES := $(addprefix --style ,1 2 3 4 fourier natural typical maco)
PHOTO := outputs/demo-images/cat/003.png

meaning: setup $(SECOND)  ## test whether another network recognizes the class images (25 minutes)
	test -e $(PHOTO) || $(BIN)/cnnvis demo
	$(BIN)/cnnvis topk outputs/demo-images --model demo --layer fc8 --run outputs/meaning
	$(BIN)/cnnvis optimize --model demo --layer fc8 --runs 2 $(STYLES) --run outputs/meaning
	$(BIN)/cnnvis optimize --model demo --layer fc8 --style accent --start $(PHOTO) --run outputs/meaning
	$(BIN)/python tests/meaning.py outputs/meaning
	$(BIN)/python tests/meaning.py outputs/meaning --by $(SECOND)

$(SECOND): | setup
	mkdir -p $(@D)
	$(BIN)/python -m cnnvis_cli.demo.training --seed 1 --output $@

check: setup  ## check style and types: ruff, mypy --strict
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

page: setup  ## write the tables of docs/plan.md from the declared settings
	$(BIN)/python tests/docs/plan_page.py

figures: setup  ## draw the pictures of README and docs again (half an hour)
	$(BIN)/python tests/docs/draw_figures.py $(if $(WEIGHTS),--weights $(WEIGHTS)) \
		$(if $(DATASET),--images $(DATASET))

format: setup  ## format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

train: setup  ## train the bundled network again (12 minutes on one core)
	$(BIN)/python -m cnnvis_cli.demo.training

evolution: setup  ## when features appear while the demo network is trained (15 minutes)
	$(BIN)/python docs/evolution.py

clean:  ## remove all that was installed and built, except outputs
	rm -rf .venv .oldest build *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
