# `make quickstart` and `make test` need only Python 3.11 or newer, git and make.

PYTHON ?= python3
VENV ?= .venv
# Test processes; each runs its numerical libraries on one thread.
JOBS ?= 2
# Additional extras to install for the tests, such as EXTRAS=anndata.
EXTRAS ?=
ARGS ?=

BIN := $(VENV)/bin
comma := ,
# The install is editable, so only a change of the metadata requires another one.
METADATA := pyproject.toml setup.py

.DEFAULT_GOAL := help
.PHONY: help quickstart test test-anndata test-oldest lint format docs bench bench-full clean

help:
	@echo "make quickstart   example: from slides to significant genes (options in ARGS=...)"
	@echo "make test         linters, tests and doctests (pytest options in ARGS=...)"
	@echo "make test-anndata tests of h5ad files, and of tables with pandas 2"
	@echo "make test-oldest  tests with the oldest supported packages"
	@echo "make format       format the code with ruff"
	@echo "make docs         build the documentation in docs/_build/html"
	@echo "make bench        speed against plain references, in minutes"
	@echo "make bench-full   all benchmarks, at the published size"
	@echo "make clean        remove generated files and $(VENV)"

$(BIN)/python:
	@command -v $(PYTHON) > /dev/null || { echo "error: '$(PYTHON)' was not found." \
		"Pass a Python >= 3.11: make PYTHON=/path/to/python3.11 ..." >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("error: sklearn_pk needs " \
		"Python >= 3.11, but $(PYTHON) is " + sys.version.split()[0] + \
		". Pass another one: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "error: $(PYTHON) cannot create a virtual" \
		"environment. On Debian and Ubuntu: apt-get install python3-venv." >&2; exit 1; }

# uv is faster than pip, but pip is sufficient. Compiled modules let worker processes start fast.
define install
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv \
		&& VIRTUAL_ENV="$(CURDIR)/$(VENV)" $(BIN)/uv pip install --compile-bytecode \
			--python $(BIN)/python -e "$(1)" \
		|| { echo "uv failed, installing with pip." >&2; $(BIN)/python -m pip install -e "$(1)"; }
endef

$(VENV)/.installed-run: $(METADATA) | $(BIN)/python
	$(call install,.)
	@touch $@

$(VENV)/.installed-test $(VENV)/.installed-docs: $(VENV)/.installed-%: $(METADATA) | $(BIN)/python
	$(call install,.[$*$(if $(EXTRAS),$(comma)$(EXTRAS))])
	@touch $@ $(VENV)/.installed-run

quickstart: $(VENV)/.installed-run
	$(BIN)/python docs/examples/plot_quickstart.py $(ARGS)

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell README.rst CONTRIBUTING.rst benchmarks docs sklearn_pk tests
	$(BIN)/lint-imports

test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist worksteal $(ARGS)

# The newest anndata requires pandas 2; the other tests run with pandas 3.
$(VENV)/anndata: | $(VENV)/.installed-test
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --target $@ \
		"anndata>=0.11" "pandas<3"

test-anndata: $(VENV)/anndata
	PYTHONPATH=$(abspath $(VENV)/anndata) $(BIN)/python -m pytest $(ARGS) tests/io/test_expression.py \
		tests/io/test_maps.py tests/model_selection/test_result.py

# Newer pyparsing warns about the oldest matplotlib; older openslide-bin prints warnings of libtiff.
test-oldest: $(VENV)/.installed-test
	$(BIN)/python -m venv $(VENV)/oldest
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip install --resolution lowest-direct --python $(VENV)/oldest/bin/python \
		-e ".[anndata,dask,test]" "pyparsing>=3.1,<3.3" "openslide-bin>=4.0.1"
	OMP_NUM_THREADS=1 $(VENV)/oldest/bin/python -m pytest -n $(JOBS) --dist worksteal \
		-o filterwarnings=default $(or $(ARGS),tests --ignore tests/benchmarks)

format: $(VENV)/.installed-test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/.installed-docs
	$(BIN)/python -m sphinx -W --keep-going -b html $(ARGS) docs docs/_build/html

bench: $(VENV)/.installed-run
	$(BIN)/python benchmarks/bench_speed.py $(ARGS)

bench-full: $(VENV)/.installed-test
	$(BIN)/python benchmarks/bench_significance.py
	$(BIN)/python benchmarks/bench_prior.py
	$(BIN)/python benchmarks/bench_regression.py
	$(BIN)/python benchmarks/bench_slides.py
	$(BIN)/python benchmarks/bench_cluster.py

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .import_linter_cache
	rm -rf .hypothesis .coverage docs/_build docs/api/generated docs/auto_examples
	rm -rf docs/sg_execution_times.rst quickstart-output
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
