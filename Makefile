# make demo · make test · make lint · make bench
# Each makes the environment .venv when it is missing or setup.py has changed.

PYTHON ?= python3
VENV ?= .venv
# Test processes side by side; each wants a core and about 2 GiB.
JOBS ?= 2

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow test-nightly test-tpu lint format bench build-file lock clean

help:
	@echo 'make demo        design a structure, write picture and table to demo_output/'
	@echo 'make test        run the test suite (without slow and nightly tests)'
	@echo 'make test-slow   run the tests marked slow'
	@echo 'make test-nightly  run long tests, and further examples of others'
	@echo 'make test-tpu    compile training steps for TPUs (none is needed)'
	@echo 'make lint        ruff, and whether BUILD fits the tree'
	@echo 'make format      let ruff format all files'
	@echo 'make bench       measure against peers, JSON to bench_output/'
	@echo 'make build-file  write BUILD anew'
	@echo 'make lock        write requirements_lock.txt anew (for Bazel)'
	@echo 'make clean       remove .venv and what the commands wrote'

$(VENV)/made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo 'jaxpapers needs Python 3.11 or newer: make PYTHON=python3.12 ...'; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

# One stamp per extra: .venv/installed-test means that [test] is in.
$(VENV)/installed-%: $(VENV)/made setup.py pyproject.toml
	$(PIP) install -q -e '.[$*]'
	@touch $@

demo: $(VENV)/installed-structopt
	$(BIN)/python scripts/structopt_optimize.py --demo --save_dir=demo_output

test: $(VENV)/installed-test
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile -m 'not slow and not nightly'

test-slow: $(VENV)/installed-test
	$(BIN)/python -m pytest -n $(JOBS) --dist load -m slow

test-nightly: $(VENV)/installed-test $(VENV)/installed-tpu
	$(BIN)/python -m pytest -n $(JOBS) --dist load -m nightly

# libtpu is a large download: it is in no other target.
test-tpu: $(VENV)/installed-test $(VENV)/installed-tpu
	$(BIN)/python -m pytest tests/training/aot_test.py

lint: $(VENV)/installed-lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python tools/build_file.py --check

format: $(VENV)/installed-lint
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The peers are built from source: libsuitesparse-dev has to be there.
bench: $(VENV)/installed-bench
	@mkdir -p bench_output
	@set -e; for file in benchmarks/[a-z]*.py; do \
	  name=$$(basename $$file .py); \
	  echo "$$file -> bench_output/$$name.json"; \
	  $(BIN)/python $$file > bench_output/$$name.json; \
	done

build-file:
	$(PYTHON) tools/build_file.py

lock: $(VENV)/installed-lint
	$(PIP) install -q uv
	$(BIN)/uv pip compile --quiet setup.py --extra all --extra test \
	  --python-version 3.11 --no-header --no-annotate \
	  --output-file requirements_lock.txt

clean:
	rm -rf $(VENV) build dist jaxpapers.egg-info demo_output bench_output
