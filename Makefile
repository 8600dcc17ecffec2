.PHONY: help demo test test-all lint docs clean

PYTHON ?= python3
RUN := .venv/bin/

help: ## Show this list.
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(RUN)python -m pip install --quiet --upgrade --constraint constraints.txt pip
	$(RUN)python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@# BackPACK asks for torchvision, never imports it, and its CUDA build fails beside the CPU build of torch.
	@$(RUN)python -c 'import torchvision' 2>/dev/null || $(RUN)python -m pip uninstall --quiet --yes torchvision
	@touch $@

demo: .venv/ready ## Train on digits with 30 % label noise, record, analyse, write a report.
	@$(RUN)dynamics demo

test: .venv/ready ## Run the test suite (about 4 minutes).
	$(RUN)python -m pytest -n 2 -m 'not slow'

test-all: .venv/ready ## Run every test, also the slow ones.
	$(RUN)python -m pytest -n 2

lint: .venv/ready ## Check style, docstrings and types.
	$(RUN)ruff check .
	$(RUN)ruff format --check .
	$(RUN)mypy

docs: .venv/ready ## Write docs/trace-format.md from the schema, and the README's figure from a demo run.
	$(RUN)python docs/make.py

clean: ## Remove what the other targets made.
	rm -rf .venv demo .pytest_cache .mypy_cache .ruff_cache .hypothesis
