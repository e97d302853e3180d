PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

# Whatever a library wants to keep stays inside the clone.
export XDG_CACHE_HOME := $(CURDIR)/$(VENV)/cache
export XDG_CONFIG_HOME := $(CURDIR)/$(VENV)/config
export PIP_NO_CACHE_DIR := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help demo test-quick test test-long test-lowest mutants lint dist bench bench-gpu stale assets

help:
	@echo "make demo         set everything up and run FLOW on embedded real data"
	@echo "make test-quick   the tests that start no processes, read no model and do not train"
	@echo "make test         all tests, as in CI"
	@echo "make test-long    all tests with the guards off, and the laws on all cases and many examples"
	@echo "make test-lowest  the quick tests with the lowest releases that pyproject.toml allows"
	@echo "make mutants      change the code at random places and see whether tests notice"
	@echo "make lint         formatting, lint, types and the direction of imports"
	@echo "make dist         build sdist and wheel, and use the wheel where nothing else is"
	@echo "make assets       fetch the real language model of tests and benchmarks (93 MB)"
	@echo "make bench        run the benchmarks and refresh their tables and figures"
	@echo "make bench-gpu    those that want a GPU"
	@echo "make stale        list the results whose code has changed since they were measured"

# One stamp file per extra: it is renewed when a requirement changes.
$(VENV)/installed-%: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[$*]'
	touch $@

demo: $(VENV)/installed-demo
	$(BIN)/flowdata demo

# Two files at a time, in the order of tests/conftest.py; each with a process that may not take
# all cores.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile \
	--no-loadscope-reorder

test-quick: $(VENV)/installed-test
	$(PYTEST) -m "not slow"

test: $(VENV)/installed-test assets
	$(PYTEST)

test-long: $(VENV)/installed-test assets
	FLOWDATA_GUARDS=off FLOWDATA_LONG=1 $(PYTEST) -m "not guard"
	FLOWDATA_FUZZ=20 $(PYTEST) -m hypothesis
	FLOWDATA_LONG=1 $(PYTEST) tests/guards

test-lowest: .venv-lowest/installed
	OMP_NUM_THREADS=1 .venv-lowest/bin/python -m pytest --numprocesses 2 --dist loadfile -m "not slow"

.venv-lowest/installed: pyproject.toml tests/lowest.txt
	rm -rf .venv-lowest
	$(PYTHON) -m venv .venv-lowest
	.venv-lowest/bin/python -m pip install --quiet -c tests/lowest.txt -e '.[test]'
	touch $@

# Options in OPTIONS="core --count 50 --seed 1 --all", see `tests/programs/mutants.py --help`.
mutants: $(VENV)/installed-mutants
	$(BIN)/python tests/programs/mutants.py $(OPTIONS)

assets: $(VENV)/installed-test
	$(BIN)/python benchmarks/assets.py

lint: $(VENV)/installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# The wheel is built from the sdist, and used where there is no clone and no other package.
dist: $(VENV)/installed-dev
	rm -rf build dist .venv-dist
	mkdir dist
	$(BIN)/python -m build --outdir dist . >dist/build.log || (cat dist/build.log; exit 1)
	$(PYTHON) -m venv .venv-dist
	.venv-dist/bin/python -m pip install --quiet -c constraints.txt dist/*.whl
	.venv-dist/bin/python -m pip check
	cd / && $(CURDIR)/.venv-dist/bin/flowdata --help
	cd / && $(CURDIR)/.venv-dist/bin/python -I $(CURDIR)/tests/programs/first_draws.py
	rm -rf .venv-dist

# Hours on two cores, on a machine with nothing else to do; each page says what it took.
bench: assets
	$(BIN)/python benchmarks/theory.py
	$(BIN)/python benchmarks/sampler.py
	$(BIN)/python benchmarks/scoring.py
	$(BIN)/python benchmarks/streaming.py --repeats 3
	$(BIN)/python benchmarks/scale.py --sizes 1e6 1e7 1e8 1e9
	$(BIN)/python benchmarks/packing.py
	$(BIN)/python benchmarks/reweight.py
	$(BIN)/python benchmarks/frameworks.py --repeats 2
	$(BIN)/python benchmarks/vision.py
	$(BIN)/python benchmarks/modes.py
	$(BIN)/python benchmarks/noise.py
	$(BIN)/python benchmarks/language.py --preset cpu
	$(BIN)/python benchmarks/language.py --preset cpu-sgd
	$(BIN)/python benchmarks/sources.py

# Each goes on where it was cut off.
bench-gpu: assets
	$(BIN)/python benchmarks/vision.py --preset backbone --device cuda --processes 8
	$(BIN)/python benchmarks/language_speed.py
	$(BIN)/python benchmarks/language.py --preset gpu
	$(BIN)/python benchmarks/scoring.py --device cuda --output benchmarks/results/cuda
	$(BIN)/python benchmarks/sources.py

stale: $(VENV)/installed-test
	$(BIN)/python benchmarks/sources.py
