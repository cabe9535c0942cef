# `make` says what there is. Everything runs from .venv, which `make setup` makes from requirements.lock.
.DEFAULT_GOAL := help
SHELL := /bin/bash
PYTHON ?= python3
ARGS ?=
STAMP := .venv/.installed
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help setup train test check doctor

help: ## list the targets
	@grep -E '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## (.*)/  make \1\t\2/' | expand -t 16

setup: $(STAMP) ## make .venv from requirements.lock (several minutes the first time: PyTorch is large)

$(STAMP): requirements.lock
	@$(PYTHON) -c 'import sys; ok = (3, 11) <= sys.version_info[:2] <= (3, 13); sys.exit(None if ok else "error: Python 3.11 to 3.13 is needed, $(PYTHON) is %d.%d; give another: make setup PYTHON=python3.12" % sys.version_info[:2])'
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "error: $(PYTHON) has no venv; on Debian: apt-get install python3-venv"; exit 1; }
	@echo "installing into .venv from requirements.lock: a few minutes the first time, several GB with PyTorch ..."
	@$(PYTHON) -m venv .venv
	@.venv/bin/python -m pip install --quiet -r requirements.lock
	@touch $(STAMP)
	@echo "installed"

train: $(STAMP) ## train the three stages on the generated set; ARGS="key=value ..." changes keys
	.venv/bin/python train.py +experiment=flickr_multistage $(ARGS)

test: $(STAMP) ## run the tests; ARGS="-k name" chooses
	.venv/bin/python -m pytest $(ARGS)

check: $(STAMP) ## lint, format, types, import contracts
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/lint-imports

doctor: $(STAMP) ## does this device compute what the CPU computes; ARGS="--device mps"
	.venv/bin/python -m insight.doctor $(ARGS)
