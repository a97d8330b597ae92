# `make demo` shows what this is; `make test` checks everything. Both set up their own environment in .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# A process for each core, of which each loads its own models; the tests of one file stay together.
AT_ONCE := -n logical --maxprocesses 4 --dist loadfile
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo test lint unit matrix clean

demo: $(VENV)/.demo
	@$(BIN)/karakuri demo

test: lint unit matrix

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

unit: $(VENV)/.test
	$(BIN)/python -m pytest $(AT_ONCE)

# The adapters on other langchain-core versions and other Pythons, where these can be installed.
matrix: $(VENV)/.test
	tests/matrix.sh $(BIN)/python $(AT_ONCE)

$(VENV)/.venv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed: make PYTHON=python3.11")'
	@echo "Setting up $(VENV) (2 to 5 minutes the first time) ..."
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.demo: $(VENV)/.venv pyproject.toml constraints.txt
	$(PIP) -e ".[all]"
	@touch $@

$(VENV)/.test: $(VENV)/.demo pyproject.toml constraints.txt
	$(PIP) -e ".[all,dev]"
	@touch $@

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .import_linter_cache dist build
