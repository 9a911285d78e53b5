# One command per habit. Everything is installed into .venv by the rules themselves; nothing needs to be there before
# but Python, make and (for the native kernels) a C++ compiler.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
OUT ?= out
SECONDS ?= 600
SEED ?= 0
JOBS ?= 2
NATIVE := CMakeLists.txt $(wildcard native/*.h native/*.cpp native/*.cmake native/*.map native/*/*.h native/*/*.cpp)

# The kernels; the binding layer beside them is formatted by hand.
KERNELS := $(wildcard $(foreach folder,simd plan planar rows channel group layer element,native/$(folder)/*.h native/$(folder)/*.cpp))

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-nocore test-torch defects nightly lint format bench docs docs-check site test-arm gpu-compile \
    release-check dist doctor-precision studies learn-data mutants fuzz fuzz-sanitized sanitize browser clean

help:  ## list the commands
	@sed -n 's/^\([a-z-]*\):.*  ## /\1\t/p' $(MAKEFILE_LIST) | expand -t 16

# Everything but torch is checked against its hash; what comes after finds it installed. pip takes no hashes in
# constraints beside an editable install. torch is pinned: an unpinned torch pulls gigabytes of CUDA.
$(VENV)/.torch: constraints.txt requirements-hashed.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --no-deps --require-hashes --requirement requirements-hashed.txt
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch==2.13.0
	@touch $@

# Where there is a compiler, a core that does not build is an error here and not a slower package.
$(VENV)/.package $(VENV)/.dev: export NORMKIT_REQUIRE_NATIVE ?= $(if $(shell command -v c++ g++ clang++),1)

$(VENV)/.package: $(VENV)/.torch pyproject.toml $(NATIVE)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-build-isolation --editable '.[studies]'
	@touch $@

$(VENV)/.release: $(VENV)/.dev requirements-release.txt
	$(BIN)/python -m pip install --quiet --no-deps --requirement requirements-release.txt
	@touch $@

$(VENV)/.dev: $(VENV)/.package requirements-zoo.txt
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-build-isolation --editable '.[dev]'
	$(BIN)/python -m pip install --quiet --no-deps --requirement requirements-zoo.txt
	@touch $@

setup: $(VENV)/.dev  ## make the environment and build the native core
	@$(BIN)/python -m tools.native_core

demo: $(VENV)/.package  ## is it right, is it fast, why normalize: one report.html
	$(BIN)/normkit demo --out $(OUT)

test: $(VENV)/.dev browser  ## run the tests
	$(BIN)/python -m pytest -m "not nightly" $(ARGS)

# without those that interpret and compile Triton kernels, for minutes: they know no core
test-nocore: $(VENV)/.dev  ## run the tests as where no native core was built
	NORMKIT_NO_NATIVE=1 $(BIN)/python -m pytest -m "not nightly and not browser and not notebook and not site" --ignore tests/kernels/test_triton.py $(ARGS)

# a run of some files or tests claims nothing
test-torch: PART = $(if $(findstring tests/,$(ARGS))$(findstring -k,$(ARGS)),--part)
test-torch: $(VENV)/.dev  ## run the tests on another torch: VERSION=2.6.0 (some GB are fetched once)
	@test -n "$(VERSION)" || { echo "say which: make test-torch VERSION=2.6.0" >&2; exit 2; }
	$(BIN)/python -m tools.torch_env $(VERSION)
	.venv-torch-$(VERSION)/bin/python -m pytest -m "not nightly and not browser and not notebook and not site" --junit-xml=$(OUT)/torch-$(VERSION).xml $(ARGS) ;\
	failed=$$? ; .venv-torch-$(VERSION)/bin/python -m tools.compatibility $(PART) $(OUT)/torch-$(VERSION).xml ; exit $$failed

defects: $(VENV)/.dev  ## which torch has which defect: examples/defects on every version that is cached
	$(BIN)/python -m tools.defects

nightly: $(VENV)/.dev browser  ## run the long presets and the kernels on ARM too, plant bugs, then a selection on the oldest and the newest torch
	$(BIN)/python -m pytest $(ARGS)
	$(BIN)/python -m tools.mutation --jobs $(JOBS)
	bash tools/oldest_and_newest.sh

lint: $(VENV)/.dev build/.tidy  ## ruff, clang-format, clang-tidy, formatting and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $(KERNELS)
	$(BIN)/mypy

# Half a minute of CPU, hence only after a change of native/.
build/.tidy: $(NATIVE) .clang-tidy tools/native_tidy.py | $(VENV)/.dev
	$(BIN)/python -m tools.native_tidy
	@mkdir -p build && touch $@

format: $(VENV)/.dev  ## let ruff and clang-format rewrite the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(KERNELS)

bench: $(VENV)/.package  ## the benchmark suite against its peers
	$(BIN)/normkit bench $(ARGS)

docs: $(VENV)/.dev browser  ## write the generated parts of the docs, then build the site
	$(BIN)/python -m tools.docs
	$(BIN)/python -m tools.learn_figures
	$(BIN)/python -m tools.site

site: $(VENV)/.dev  ## build the docs as a site in build/site/html, strictly: a warning or a dead link fails
	$(BIN)/python -m tools.site

docs-check: $(VENV)/.dev browser  ## fail when a generated part has drifted from the code
	$(BIN)/python -m tools.docs --check
	$(BIN)/python -m tools.learn_figures --check

release-check: $(VENV)/.release  ## all that a release needs, in one table: ARGS=--without-tests leaves .ci/run out
	$(BIN)/python -m tools.release $(ARGS)

dist: $(VENV)/.release  ## the source and the wheel without the core, in build/release/dist
	$(BIN)/python -m tools.release --portable

gpu-compile: $(VENV)/.dev  ## compile the Triton kernels for each GPU, no GPU needed, and write the table in docs/gpu.md
	$(BIN)/python -m tools.gpu_compile --write

doctor-precision: $(VENV)/.dev  ## how often the doctor is right: healthy nets, planted faults, torch-audit beside it
	$(BIN)/python -m tools.precision $(ARGS)
	$(BIN)/python -m tools.docs

studies: $(VENV)/.dev  ## run the full presets of studies, hours on one core, and keep what they found: NAMES="depth"
	$(BIN)/python -m tools.studies $(NAMES)

learn-data: $(VENV)/.dev  ## make the trainings that `normkit learn` shows, one or two minutes
	$(BIN)/python -m tools.learn_data

mutants: $(VENV)/.dev  ## plant bugs one at a time in copies of the package: do the tests notice? NAMES="..." JOBS=2
	$(BIN)/python -m tools.mutation --jobs $(JOBS) $(NAMES)

fuzz: $(VENV)/.dev  ## attack the public functions and layers with drawn cases: SECONDS=600 SEED=0
	$(BIN)/python -m tools.fuzz --seconds $(SECONDS) --seed $(SEED) --out $(OUT)/fuzz $(ARGS)

sanitize:  ## the native kernels under address, undefined and thread sanitizers
	$(MAKE) -C native/test

test-arm:  ## the native kernels on 64-bit ARM: cross-compiled, and run under qemu
	$(MAKE) -C native/test arm

# GCC's runtimes come before anything else, and the C++ library with them: they look its functions up when they start.
RUNTIMES = $(shell for l in asan ubsan stdc++; do c++ -print-file-name=lib$$l.so; done | paste -sd:)
fuzz-sanitized: $(VENV)/.dev  ## the fuzzer on a core built under the address and undefined sanitizers (GCC)
	$(MAKE) -C native/test core PYTHON=$(abspath $(BIN)/python)
	NORMKIT_FUZZ_CORE=$$(ls $(CURDIR)/build/native-test/address/_native*.so) LD_PRELOAD=$(RUNTIMES) \
	    ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1:alloc_dealloc_mismatch=0:new_delete_type_mismatch=0 UBSAN_OPTIONS=print_stacktrace=1 \
	    $(BIN)/python -m tools.fuzz --limit 120 --seconds $(SECONDS) --seed $(SEED) --out $(OUT)/fuzz $(ARGS)

browser:  ## headless Chromium for the report's test, where this user may install it
	@sh tools/install_browser.sh

clean:
	rm -rf build $(OUT) $(VENV) .venv-torch-* .mypy_cache .ruff_cache .pytest_cache .hypothesis
