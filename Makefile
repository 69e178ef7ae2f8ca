# The developer's day. `make demo` on a fresh machine needs only Python >= 3.10, make and a package index.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

# Without CUDA, torch's CPU build comes first and alone: a loose requirement pulls gigabytes of CUDA packages.
# Where that index can't be reached, pip skips it after a few seconds and takes what the other indexes offer.
ifeq ($(shell command -v nvidia-smi 2>/dev/null),)
TORCH_INDEX ?= --extra-index-url https://download.pytorch.org/whl/cpu --retries 1 --timeout 15
endif

# Memory in huge pages: small models train 7 % faster. Only glibc knows the variable.
HUGE_PAGES := GLIBC_TUNABLES=glibc.malloc.hugetlb=1

.PHONY: help setup demo test test-slow lint format check model study bench growth clean
help:  ## show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: $(VENV)/.installed  ## make .venv and install everything into it

$(VENV)/.installed: pyproject.toml constraints.txt
	$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv $(VENV)
	$(PIP) install -q -c constraints.txt $(TORCH_INDEX) torch
	$(PIP) install -q -c constraints.txt -e '.[dev]'
	touch $@

demo: setup  ## ask the bundled sample video six questions
	$(BIN)/longvlm demo

test: setup  ## the tests (minutes; slow and GPU ones are marked and left out), one process for each core
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile

test-slow: setup  ## the tests that take many minutes
	$(BIN)/python -m pytest -m slow

lint: setup  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy src/longvlm

format: setup  ## let ruff put everything in order
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

check: test lint  ## what CI runs

model: setup  ## train such a model as the bundled one from nothing, in its place (hours; stops and resumes)
	$(HUGE_PAGES) $(BIN)/python -m longvlm.training.default_model

study: setup  ## test the paper's claims with small models (hours; stops and resumes)
	$(HUGE_PAGES) $(BIN)/longvlm study -o docs/results --document docs/study.md

bench: setup  ## measure speed and memory against what users would otherwise run (45 minutes to three hours)
	$(PIP) install -q -c constraints.txt -e '.[bench]'
	$(BIN)/python -m benchmarks $(ROWS)

growth: setup  ## plot how time and memory grow with duration, frames, tokens and batch (15 minutes to an hour)
	$(PIP) install -q -c constraints.txt -e '.[bench]'
	$(BIN)/python -m benchmarks.growth

clean:  ## remove the environment and build products
	rm -rf $(VENV) build dist src/*.egg-info .pytest_cache .mypy_cache .ruff_cache
