PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

# Whatever a library wants to keep stays inside the clone.
export XDG_CACHE_HOME := $(CURDIR)/$(VENV)/cache
export XDG_CONFIG_HOME := $(CURDIR)/$(VENV)/config
export PIP_NO_CACHE_DIR := 1

.PHONY: help demo test lint bench assets

help:
	@echo "make demo   set everything up and run FLOW on embedded real data"
	@echo "make test   set everything up and run all tests"
	@echo "make lint   formatting, lint and types"
	@echo "make assets fetch the real language model that tests and benchmarks use (93 MB)"
	@echo "make bench  run the benchmarks and refresh their tables and figures"

# One stamp file per extra: it is renewed when a requirement changes.
$(VENV)/installed-%: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[$*]'
	touch $@

demo: $(VENV)/installed-demo
	$(BIN)/flowdata demo

# Two files at a time; a process for each, so that they may not take all cores.
test: $(VENV)/installed-test assets
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile

assets: $(VENV)/installed-test
	$(BIN)/python benchmarks/assets.py

lint: $(VENV)/installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: assets
	$(BIN)/python benchmarks/theory.py
	$(BIN)/python benchmarks/sampler.py
	$(BIN)/python benchmarks/scoring.py
	$(BIN)/python benchmarks/streaming.py --repeats 3
	$(BIN)/python benchmarks/reweight.py
	$(BIN)/python benchmarks/frameworks.py
	$(BIN)/python benchmarks/vision.py
	$(BIN)/python benchmarks/modes.py
	$(BIN)/python benchmarks/noise.py
	$(BIN)/python benchmarks/language.py --preset cpu
