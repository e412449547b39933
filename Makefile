# Two commands from a fresh clone: `make demo` and `make test`. Nothing but Python 3.11+ is needed before.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
THREADS ?= 2

.PHONY: help env demo test test-ray test-slow lint docs results gallery bench clean
help:            ## show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/'

env: $(VENV)/.installed   ## build the virtual environment
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: env        ## synthesise spoken digits, train, decode, report: the word error rate in minutes
	$(BIN)/hemstitch train recipes/demo.toml

test: env        ## the test suite (under 15 minutes on 2 cores)
	$(BIN)/lint-imports --no-cache
	$(BIN)/ruff check .
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest

test-ray: env    ## faults of a real cluster: processes killed, stopped, cut off
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,parallel]'
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow tests/parallel/test_ray_*.py

test-slow: env   ## long tests: killed and resumed runs, real training
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow

lint: env        ## style and architecture
	$(BIN)/ruff check . && $(BIN)/lint-imports --no-cache

docs: env        ## the documentation site in docs/_build/html, without warnings; its examples are run
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	$(BIN)/sphinx-build -q -W -b html docs docs/_build/html
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --doctest-modules src/hemstitch

results: env     ## docs/results.md and the comparison of the README from the outcome files in results/laptop
	$(BIN)/hemstitch reproduce --markdown results/laptop docs/results.md
	$(BIN)/python docs/comparison.py

gallery: env     ## the pictures of the gallery
	for e in natural_gradient backstitch_bias backward_order hessian_free many_workers; do \
	  OMP_NUM_THREADS=1 $(BIN)/python examples/$$e.py --out docs/gallery || exit 1; done

bench: env       ## every benchmark, one after the other; results into benchmarks/results
	for b in benchmarks/bench_*.py; do $(BIN)/python $$b || exit 1; done

clean:           ## remove the environment and caches
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache
