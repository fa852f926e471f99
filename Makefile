# Targets for people; `make help` lists them.  Everything is installed into .venv/, nothing outside it,
# save the Debian packages that a virtual environment itself needs (.ci/system-packages).

PYTHON ?= python3
FLAVOUR ?= debian custom
SECONDS ?= 60
TARGET ?=
RUNS    ?= 1000
SEED    ?= 1

VENV  := .venv
BIN   := $(VENV)/bin
STAMP := $(VENV)/.stamp
PIP   := $(BIN)/pip --disable-pip-version-check

# What `make test-asan` runs: the tests that reach the extensions without leaving the process.
ASAN_TESTS := tests/native tests/fuzz tests/vfio_user tests/flow/test_migrate.py tests/flow/test_wire.py \
	tests/flow/test_faults.py tests/flow/test_reconnect.py

comma := ,

# $(call quietly,what is being done,command): one line, and the output only if the command fails
quietly = @echo "$(1)"; log=$$(mktemp); \
	{ $(2); } >$$log 2>&1 || { cat $$log; rm -f $$log; echo "failed: $(1)" >&2; exit 1; }; \
	rm -f $$log

.DELETE_ON_ERROR:
.NOTPARALLEL:
.PHONY: help demo test test-asan test-qemu test-kernel chaos chaos-mutants fuzz check-model lint man bench bench-quick clean

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.* ## \(.*\)/  \1	\2/p' $(MAKEFILE_LIST) | expand -t 10

demo: $(STAMP)-runtime  ## migrate simulated devices between two local processes and show the report
	@$(BIN)/vfioflow demo

test: $(STAMP)-test $(STAMP)-runtime  ## run the tests
	@.ci/test-packages
	@$(BIN)/python -m pytest tests

test-qemu: $(STAMP)-test $(STAMP)-runtime  ## run the tests that migrate a guest of QEMU's
	@.ci/qemu-packages
	@VFIOFLOW_QEMU=1 $(BIN)/python -m pytest tests/qemu

test-kernel: test-qemu $(STAMP)-test $(STAMP)-runtime  ## those, and the tests on real VFIO devices, in a guest; FLAVOUR=debian or custom: only that kernel
	@for flavour in $(FLAVOUR); do \
		echo "Kernel tests, $$flavour: about two minutes once the guest is built (first time: 1 minute for debian, 10 for custom)"; \
		$(PYTHON) tests/kernel/rig/rig.py $$flavour $(abspath $(BIN))/python -m pytest -p no:cacheprovider tests/kernel || exit; \
	done

test-asan: $(STAMP)-test $(STAMP)-runtime  ## run the tests of the extensions under AddressSanitizer and UBSan
	$(call quietly,Compiling with the sanitizers of gcc,VFIOFLOW_SANITIZE=address$(comma)undefined \
		$(BIN)/python setup.py --quiet build --build-base build/asan --build-lib build/asan/lib)
	@.ci/sanitized build/asan $(BIN)/python -m pytest -p no:cacheprovider $(ASAN_TESTS)

fuzz: $(STAMP)-fuzz $(STAMP)-runtime  ## fuzz all parsers, each for SECONDS=60; TARGET="NAME...": only those
	@.ci/fuzz-packages
	$(call quietly,Compiling for the fuzzer with clang,CC=clang LDSHARED="clang -shared" VFIOFLOW_SANITIZE=address$(comma)fuzzer-no-link \
		$(BIN)/python setup.py --quiet build --build-base build/fuzz --build-lib build/fuzz/lib)
	@$(BIN)/python tests/fuzz/campaign.py --seconds $(SECONDS) $(TARGET)

check-model:  ## check the model of the hand-over (docs/model.md), every state of it: about a minute, 1 GB
	@.ci/model-packages
	@$(PYTHON) docs/model/check.py

chaos: $(STAMP)-test $(STAMP)-runtime  ## RUNS migrations (1000) with one fault schedule each, from SEED (1); JSON=FILE: a summary there
	@$(BIN)/python -m tests.chaos --runs $(RUNS) --start $(SEED) $(if $(JSON),--json $(JSON))

chaos-mutants: $(STAMP)-test $(STAMP)-runtime  ## break the code in each of many ways, and see that chaos notices
	@$(BIN)/python -m tests.chaos.mutants

man: $(STAMP)-runtime  ## manual pages of every command, into build/man/man1
	@$(BIN)/vfioflow man --into build/man/man1

lint: $(STAMP)-lint $(STAMP)-runtime  ## check style, types, and that the extensions compile without a warning
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@PATH="$(abspath $(BIN)):$$PATH" cython-lint pyx  # it looks for pycodestyle there
	@tmp=$$(mktemp -d); trap 'rm -rf "$$tmp"' EXIT; echo "Compiling with warnings as errors"; \
	VFIOFLOW_WERROR=1 $(BIN)/python setup.py --quiet build_ext --build-lib "$$tmp/lib" --build-temp "$$tmp/temp"

bench: $(STAMP)-bench $(STAMP)-runtime  ## benchmarks, then the comparisons with other programs, into bench/results: 25 minutes
	@.ci/bench-packages
	@$(BIN)/python -m pytest bench --benchmark-only
	@$(BIN)/python bench/observing.py
	@$(BIN)/python bench/compare.py raw --gib 1 --rounds 3 --json bench/results/raw.json --plot bench/results/raw.svg
	@$(BIN)/python bench/compare.py compressed --gib 2 --rounds 2 --json bench/results/compressed.json --plot bench/results/compressed.svg
	@$(BIN)/python bench/compare.py scale --gib 32 --rounds 2 --json bench/results/scale.json --plot bench/results/scale.svg
	@$(BIN)/python bench/compare.py security --gib 1 --rounds 3 --json bench/results/security.json

bench-quick: $(STAMP)-bench $(STAMP)-runtime  ## a few of the comparisons against stored ratios, in two minutes; fails when slower
	@.ci/bench-packages
	@$(BIN)/python bench/compare.py quick --json bench/results/quick.json

clean:  ## remove the virtual environment and everything that was built
	@rm -rf $(VENV) build dist bench/results *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .benchmarks
	@find vfioflow -name '*.so' -delete
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(STAMP)-venv: .ci/system-packages .ci/apt-install
	@.ci/system-packages $(PYTHON)
	$(call quietly,Creating $(VENV),$(PYTHON) -m venv --clear $(VENV) && $(PIP) install --upgrade 'pip>=25.1')
	@touch $@

$(STAMP)-build $(STAMP)-test $(STAMP)-bench $(STAMP)-fuzz $(STAMP)-lint: $(STAMP)-%: $(STAMP)-venv pyproject.toml
	$(call quietly,Installing the tools to $*,$(PIP) install --group $*)
	@touch $@

# Not isolated, so that a rebuild takes seconds; all over again where setup.py itself changed.
$(STAMP)-runtime: $(STAMP)-build setup.py $(shell find pyx -type f)
	$(if $(filter setup.py,$?),@rm -rf build)
	$(call quietly,Compiling and installing vfioflow,$(PIP) install --no-build-isolation --editable .)
	@touch $@
