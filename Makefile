# Each target does the set-up that it needs; steps that are done are not done again.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.NOTPARALLEL:

# The interpreter that makes .venv.
PYTHON ?= python3
# The package index of torch, such as that of its CPU builds; empty: pip's own.
TORCH_INDEX_URL ?=
# Further arguments for the program of `make demo` and the pytest of `make test`.
DEMO_ARGS ?=
PYTEST_ARGS ?=
# So many processes share the files of the tests; 0: one, as pytest --pdb needs.
PYTEST_JOBS ?= 3
# Further arguments for tools/check_wheel, such as --smoke; or the systems of tools/check_source.
CHECK_ARGS ?=
# Releases of torch that `make wheel` builds for, and `make check-wheel` tries.
TORCH ?= 2.13.0 2.14.1
# What runs under AddressSanitizer with torch.
ASAN_TESTS ?= tests/test_lifetimes.py tests/test_npz_lifetimes.py tests/test_data_lifetimes.py
SOAK_SECONDS ?= 60
# For each fuzz target.
FUZZ_SECONDS ?= 600
FUZZ_CLANG ?= $(shell for v in 16 17 18 19 20; do \
  command -v clang++-$$v >/dev/null && echo $$v && exit; done; echo 16)
# Files beginning with _ are not benchmarks but what they share.
BENCHMARKS ?= $(filter-out benchmarks/_%,$(wildcard benchmarks/*.py))

STEP := tools/step
PIP := .venv/bin/pip install --disable-pip-version-check
CORE := CMakeLists.txt cmake csrc/base csrc/format csrc/transport csrc/archive
# For the shell: what is compiled depends on the release of torch.
TORCH_VERSION := .venv/lib/python3*/site-packages/torch/version.py
CMAKE := cmake -G Ninja -S .
CXX_FILES = $(shell find csrc tests examples -name '*.cpp' -o -name '*.h')

.PHONY: help demo test lint asan tsan soak fuzz bench wheel sdist check-wheel check-source clean
help:
	@echo "make demo   train on images in an S3 store: the whole way, about a minute"
	@echo "make test   all tests of C++ and Python"
	@echo "make lint   clang-format, ruff, mypy, jactionlint"
	@echo "make asan   C++ tests under AddressSanitizer and UBSan, lifetimes with torch under ASan"
	@echo "make tsan   C++ tests under ThreadSanitizer"
	@echo "make soak   loads for SOAK_SECONDS (60) while faults hit a tenth of the requests"
	@echo "make fuzz   each parser fed with random bytes for FUZZ_SECONDS (600)"
	@echo "make bench  the measurements against other libraries"
	@echo "make wheel  a wheel for this Python and the releases of torch in TORCH, in dist/"
	@echo "make sdist  the source as one file, in dist/"
	@echo "make check-wheel  the tests with that wheel, in a clean Debian; needs root"
	@echo "make check-source  builds and C++ tests in clean systems, and for aarch64; needs root"
	@echo "make clean  removes what was built; .venv stays"

demo: compile packages-demo
	@.venv/bin/python examples/train_digits.py $(DEMO_ARGS)

test: compile compile-tests packages-demo packages-test
	@tools/system test
	@tools/gtest build/cmake/npy_core_test
	@.venv/bin/pytest -n $(PYTEST_JOBS) --dist loadfile $(PYTEST_ARGS)

lint: torch packages-lint
	@echo .venv/bin/clang-format --dry-run -Werror
	@.venv/bin/clang-format --dry-run -Werror $(CXX_FILES)
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/mypy
	.venv/bin/jactionlint --profile correctness --shellcheck= --pyflakes=

asan: compile-asan packages-demo packages-test
	@tools/gtest build/asan/npy_core_test
	@for source in tests/fuzz/*.cpp; do \
	  target=$$(basename $$source .cpp); build/asan/$$target tests/fuzz/corpus/$$target; \
	done
	@tools/asan_pytest build/asan/site -n $(PYTEST_JOBS) --dist loadfile $(ASAN_TESTS)

# Without address randomisation where that is allowed: ThreadSanitizer of GCC 12 needs a
# layout that newer kernels do not give.
tsan: compile-tsan
	@fixed=; if setarch -R true 2>/dev/null; then fixed="setarch -R"; fi; \
	$$fixed build/tsan/npy_core_test --gtest_brief=1

soak: compile packages-test
	@.venv/bin/python tests/soak.py $(SOAK_SECONDS)

fuzz: compile-fuzz
	@ls tests/fuzz/*.cpp | xargs -P $$(nproc) -I{} tools/fuzz $(FUZZ_SECONDS) {}

bench: compile packages-bench
	@tools/system bench
	@for script in $(BENCHMARKS); do echo "$$script"; .venv/bin/python $$script; done

wheel: packages-build packages-wheel
	@tools/system wheel
	@.venv/bin/python tools/wheel --torch "$(TORCH)"

sdist: packages-build
	@.venv/bin/python -c "from setuptools import build_meta; print('dist/' + build_meta.build_sdist('dist'))"

check-wheel: venv
	@tools/system check-wheel
	@.venv/bin/python tools/check_wheel --torch "$(TORCH)" $(CHECK_ARGS)

check-source: venv
	@tools/system check-source
	@.venv/bin/python tools/check_source $(CHECK_ARGS)

clean:
	rm -rf build dist torchnpy.egg-info torchnpy/lib torchnpy/include torchnpy/share torchnpy/_C*.so
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find torchnpy tests examples benchmarks -name __pycache__ -prune -exec rm -rf {} +

# The set-up.
.PHONY: system venv torch compile compile-tests compile-asan compile-tsan compile-fuzz
system:
	@tools/system build $(PYTHON)

# The file .made tells later steps that theirs went with an earlier .venv.
venv: system
	@$(STEP) venv "Making the virtual environment .venv" --makes .venv/.made -- \
	  bash -c 'version() { "$$1" -c "import sys; print(sys.version)" 2>&1; }; \
	    { [ "$$(version .venv/bin/python)" = "$$(version $(PYTHON))" ] || $(PYTHON) -m venv --clear .venv; } && date +%s%N >.venv/.made'

torch: venv packages-build
	@$(STEP) torch "Installing PyTorch" .venv/.made -- \
	  $(PIP) $(if $(TORCH_INDEX_URL),--index-url $(TORCH_INDEX_URL)) $$(.venv/bin/python tools/requirements torch)

# Some require torch, and would bring another one.
packages-bench packages-demo packages-lint packages-test: torch
packages-%: venv
	@$(STEP) $@ "Installing the Python packages for $*" .venv/.made -- \
	  $(PIP) $$(.venv/bin/python tools/requirements $*)

compile: torch
	@$(STEP) compile "Compiling torchnpy (a few minutes the first time)" \
	  --makes torchnpy/lib/libnpy_core.so .venv/.made $(TORCH_VERSION) csrc cmake CMakeLists.txt setup.py pyproject.toml -- \
	  $(PIP) -v --no-build-isolation --no-deps --editable .

compile-tests: compile
	@$(STEP) compile-tests "Compiling the C++ tests" --makes build/cmake/npy_core_test $(CORE) tests/cpp -- \
	  bash -c 'cmake -DTORCHNPY_TESTS=ON build/cmake && cmake --build build/cmake --target npy_core_test'

# With torch, whose headers are compiled without UBSan.
compile-asan: torch
	@$(STEP) compile-asan "Compiling torchnpy and the C++ tests with AddressSanitizer and UBSan" \
	  --makes build/asan/site/torchnpy/lib/libnpy_core.so \
	  .venv/.made $(TORCH_VERSION) csrc tests/cpp tests/fuzz cmake CMakeLists.txt $(wildcard torchnpy/*.py torchnpy/*/*.py) -- \
	  bash -c '$(CMAKE) -B build/asan -DTORCHNPY_TESTS=ON -DTORCHNPY_SANITIZE=address,undefined \
	      -DPython_EXECUTABLE=$$PWD/.venv/bin/python \
	      -DCMAKE_PREFIX_PATH=$$(.venv/bin/python -c "import torch.utils as u; print(u.cmake_prefix_path)") && \
	    cmake --build build/asan && \
	    rm -rf build/asan/site && mkdir build/asan/site && cp -r torchnpy build/asan/site && \
	    cmake --install build/asan --prefix build/asan/site/torchnpy'

compile-tsan: system
	@$(STEP) compile-tsan "Compiling the C++ tests with ThreadSanitizer" \
	  --makes build/tsan/npy_core_test $(CORE) tests/cpp -- \
	  bash -c '$(CMAKE) -B build/tsan -DTORCHNPY_CORE_ONLY=ON -DTORCHNPY_TESTS=ON \
	    -DTORCHNPY_SANITIZE=thread && cmake --build build/tsan'

compile-fuzz: system
	@tools/system fuzz $(FUZZ_CLANG)
	@$(STEP) compile-fuzz "Compiling the fuzz targets" $(CORE) tests/fuzz -- \
	  bash -c '$(CMAKE) -B build/fuzz -DTORCHNPY_CORE_ONLY=ON -DTORCHNPY_FUZZ=ON \
	    -DCMAKE_CXX_COMPILER=clang++-$(FUZZ_CLANG) -DTORCHNPY_SANITIZE=address,undefined && \
	    cmake --build build/fuzz'
