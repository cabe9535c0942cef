# `make` says what there is. Everything runs from .venv, which `make setup` makes from requirements.lock.
.DEFAULT_GOAL := help
SHELL := /bin/bash
IN_RANGE := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))
PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11; do $$python -c '$(IN_RANGE)' 2>/dev/null && echo $$python && exit; done; echo python3)
ARGS ?=
STAMP := .venv/.installed
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help setup train test check doctor

help: ## list the targets
	@grep -E '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## (.*)/  make \1\t\2/' | expand -t 16

setup: $(STAMP) ## make .venv from requirements.lock (several minutes the first time: PyTorch is large)

$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) --version >/dev/null 2>&1 || { echo "error: there is no $(PYTHON) that runs; install Python 3.11 to 3.13, or name one: make setup PYTHON=PATH"; exit 1; }
	@$(PYTHON) -c '$(IN_RANGE)' || { echo "error: Python 3.11 to 3.13 is needed, $(PYTHON) is $$($(PYTHON) --version 2>&1); name another: make setup PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "error: $(PYTHON) has no venv; on Debian and Ubuntu: apt-get install python3-venv"; exit 1; }
	@echo "installing requirements.lock into .venv: 3 to 10 minutes the first time (PyTorch is several GB), seconds after that ..."
	@$(PYTHON) -m venv .venv
	@.venv/bin/python -m pip install --quiet -r requirements.lock
	@touch $(STAMP)
	@echo "installed"

train: $(STAMP) ## train the three stages on the generated set; ARGS="key=value ..." changes keys
	.venv/bin/python train.py +experiment=flickr_multistage $(ARGS)

test: $(STAMP) ## run the tests, several at a time; ARGS="-k name" chooses
	.venv/bin/python -m pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder $(ARGS)

check: $(STAMP) ## lint, format, types, import contracts
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/lint-imports

doctor: $(STAMP) ## does this device compute what the CPU computes; ARGS="--device mps"
	.venv/bin/python -m insight.doctor $(ARGS)
