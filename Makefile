# `make demo` tunes ResNet-50 on this machine, `make quick` checks a change, `make check` runs the tests. Each sets
# everything up first.
PYTHON ?= python3
VENV ?= .venv
EXTRAS ?= cpu,openvino,postgres,test
# torch goes in first and by itself, so that a build of your choice (with or without CUDA) is kept by what follows.
TORCH ?= torch==2.13.0
DEMO_STUDY ?= studies/resnet50/study.yaml
DEMO_BATCH ?= 1
DEMO_BUDGET ?= 3m
DEMO_DB ?= sqlite:///.demo/autotune.db

BIN := $(VENV)/bin
comma := ,
STAMP := $(VENV)/.autotune-$(subst $(comma),-,$(EXTRAS))

.PHONY: help setup links demo quick test check lint types docs kernels clean
help:
	@echo "make demo    tune $(DEMO_STUDY) at batch $(DEMO_BATCH) on this machine ($(DEMO_BUDGET) of search)"
	@echo "make quick   lint, strict types and the tests that take moments: 2 minutes on one core"
	@echo "make test    all tests but those that only CI runs"
	@echo "make check   lint, strict types and all tests: 20 minutes on two cores"
	@echo "make kernels compile the standard kernels into build/kernels-ARCH.tar.xz (a pack), without a GPU"
	@echo "make docs    build the documentation into build/site; a warning is an error"
	@echo "make setup   make $(VENV) with everything that the above need"
	@echo "make clean   remove what was built, and the demo's database"

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt | links
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
		|| { echo "Python 3.10 or newer is needed; name one with: make setup PYTHON=python3.12" >&2; exit 2; }
	@test -x $(BIN)/python && $(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt "setuptools>=77" "$(TORCH)"
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[$(EXTRAS)]"
	@command -v g++ >/dev/null || echo "note: no g++ here, so the inductor backend takes no part (Debian: apt-get install g++)" >&2
	@touch $@

# Git-ignored links, so that type checkers and editors see the two top-level folders where they are imported from.
links:
	@test -e autotune/backends || ln -s ../backends autotune/backends
	@test -e autotune/search_spaces || ln -s ../search_spaces autotune/search_spaces

demo: setup
	@mkdir -p .demo
	$(BIN)/autotune tune $(DEMO_STUDY) --batch $(DEMO_BATCH) --budget $(DEMO_BUDGET) --db $(DEMO_DB)

# The groups of tests are described in tests/groups.py. Tests that time something for real run alone, the others on all
# cores. The thorough ones are left to .ci/run.
# A worker that dies ends the run: the tests that it still had would be waited for without end.
SIDE_BY_SIDE := -n logical --dist loadfile --no-loadscope-reorder --max-worker-restart=0
test: setup
	$(BIN)/python -m pytest -q -m "not gpu and not alone and not thorough" $(SIDE_BY_SIDE)
	$(BIN)/python -m pytest -q -m "not gpu and alone and not thorough"

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/mypy

# For one core and cold caches: whatever takes moments and starts no study.
quick: lint types
	$(BIN)/python -m pytest -q --quick

DOCS_STAMP := $(VENV)/.autotune-docs
$(DOCS_STAMP): pyproject.toml constraints.txt | setup
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[docs]"
	@touch $@

# The variable silences a note about the successor of MkDocs, which --strict does not count as a warning.
docs: setup $(DOCS_STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

# In a cache of its own, so that the pack has the standard kernels and no others.
KERNELS_ARCH ?= sm_90a
kernels: setup
	@mkdir -p build
	XDG_CACHE_HOME=$(CURDIR)/build/kernels $(BIN)/autotune kernels build --arch $(KERNELS_ARCH)
	XDG_CACHE_HOME=$(CURDIR)/build/kernels $(BIN)/autotune kernels export build/kernels-$(KERNELS_ARCH).tar.xz

# The import directions are checked by tests/test_imports.py.
check: lint types test

clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .demo
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
