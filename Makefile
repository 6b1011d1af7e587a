# run and test set everything up first; the first time they compile the kernels, which takes some minutes.

PYTHON ?= python3
TPI_RUN = .venv/bin/tpi run demo --local-devices 4 --memory 160MiB --window 1MB
PROMPT ?= Tell me a story about a fox and a lantern.

.PHONY: run test parity templates hub-twins fuzz-api lint bench kernels clean setup setup-dev
MAKEFLAGS += --no-print-directory

run: setup  ## talk with four devices on this machine; without a terminal: one story
	@if [ -t 0 ] && [ -t 1 ]; then exec $(TPI_RUN); else exec $(TPI_RUN) "$(PROMPT)"; fi

test: setup-dev  ## everything that must hold
	@.venv/bin/python -m pytest tests/cluster  # alone: real processes, whose times and memory are measured
	@.venv/bin/python -m pytest -n auto --maxprocesses 4 tests/unit tests/parity tests/fuzz

parity: setup-dev  ## every architecture and every data type against llama.cpp, and cut among ranks: two tables
	@.venv/bin/python -m tests.parity.architectures
	@.venv/bin/python -m tests.parity.types

templates: setup-dev  ## our own chat templates as transformers renders them, which it installs in build/: a table
	@.venv/bin/python -m tests.parity.templates

hub-twins: setup-dev  ## what transformers and llama.cpp's converter make of small models of every family, noted for the tests
	@test -d build/hub || $(PYTHON) -m venv build/hub
	@build/hub/bin/pip install -q -r tests/parity/hubtwins.txt
	@build/hub/bin/pip download -q --no-deps --no-binary llama-cpp-python -d build/hub llama-cpp-python==0.3.36
	@tar -C build/hub -xzf build/hub/llama_cpp_python-0.3.36.tar.gz
	@build/hub/bin/python -m tests.parity.hubtwins build/hub/llama_cpp_python-0.3.36/vendor/llama.cpp

fuzz-api: setup-dev  ## the API against its own description, with 10,000 requests
	@.venv/bin/python -m tests.fuzz.api --requests 10000

lint: setup-dev  ## style, formatting, types
	@.venv/bin/ruff check
	@.venv/bin/ruff format --check
	@.venv/bin/mypy

bench: setup-dev  ## the numbers in the README, for an hour on a quiet machine as root
	@.venv/bin/python -m bench reach

kernels:  ## compile the kernels again, after a crash or a change of compiler
	@$(PYTHON) -m tools.setup --rebuild-kernels

clean:  ## removes the environment and what tools left; the compiled kernels stay in the user's cache
	@rm -rf .venv build dist src/*.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

setup:
	@$(PYTHON) -m tools.setup

setup-dev:
	@$(PYTHON) -m tools.setup --dev
