PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: help demo test lint bench

help:
	@echo "make demo   set everything up and run FLOW on embedded real data"
	@echo "make test   set everything up and run all tests"
	@echo "make lint   formatting, lint and types"
	@echo "make bench  run the benchmarks and refresh their tables and figures"

# One stamp file per extra: it is renewed when a requirement changes.
$(VENV)/installed-%: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[$*]'
	touch $@

demo: $(VENV)/installed-demo
	$(BIN)/flowdata demo

test: $(VENV)/installed-test
	$(BIN)/python -m pytest

lint: $(VENV)/installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: $(VENV)/installed-demo
	$(BIN)/python benchmarks/sampler.py
