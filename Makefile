# Commands for people. Everything runs in .venv, made on first use from pyproject.toml.
# Needs Python >= 3.11 with venv, and make. `make PYTHON=/path/to/python` chooses the interpreter.
PYTHON ?=
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
ARGS ?=
SHIPPED := build/shipped
SUPPLY := build/supply

# Make .venv unless a whole one is there: it counts as whole when its pip answers. What a broken
# attempt leaves is removed, so that the next one starts from nothing.
define make_venv
@if $(BIN)/python -m pip --version >/dev/null 2>&1; then exit 0; fi; \
found= fits='import sys; sys.exit(sys.version_info < (3, 11))'; \
for python in $(or $(PYTHON),python3 python3.13 python3.12 python3.11 python3.14 python); do \
    "$$python" -c "$$fits" >/dev/null 2>&1 && found=$$python && break; \
done; \
if [ -z "$$found" ]; then \
    echo "No Python >= 3.11 found$(if $(PYTHON), at $(PYTHON))." \
        "Install one, or name it: make $(MAKECMDGOALS) PYTHON=/path/to/python3.11" >&2; \
    exit 1; \
fi; \
if ! "$$found" -c 'import ensurepip, venv' >/dev/null 2>&1; then \
    echo "$$found has no venv module. On Debian and Ubuntu: apt install python3-venv" >&2; \
    exit 1; \
fi; \
echo "making $(VENV) with $$($$found --version)"; \
trap 'rm -rf $(VENV); exit 130' INT TERM; \
rm -rf $(VENV) && "$$found" -m venv $(VENV) || { rm -rf $(VENV); exit 1; }
endef

.PHONY: run test dev lint types docs bench fuzz reliability sbom audit clean

# Each file says that an install came to its end; a wider one includes the narrower.
$(BIN)/.run: pyproject.toml
	$(make_venv)
	$(PIP) install -e .
	@touch $@

$(BIN)/.test: pyproject.toml
	$(make_venv)
	$(PIP) install -e '.[test]'
	@touch $@ $(BIN)/.run

$(BIN)/.dev: pyproject.toml
	$(make_venv)
	$(PIP) install -e '.[dev]'
	@touch $@ $(BIN)/.test $(BIN)/.run

run: $(BIN)/.run
	@exec $(BIN)/python -m otel_anomaly run $(ARGS)

test: $(BIN)/.test
	$(BIN)/python -m pytest $(ARGS)

dev: $(BIN)/.dev

lint: $(BIN)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(BIN)/.dev
	$(BIN)/mypy

docs: $(BIN)/.test
	$(BIN)/python -m tests.generate_docs

bench: $(BIN)/.test
	$(BIN)/python -m tests.bench $(ARGS)

fuzz: $(BIN)/.test
	$(PIP) install -e '.[fuzz]'
	$(BIN)/python -m tests.fuzz $(ARGS)

# Takes hours: every row of the table in docs/reliability.md, as long as it should be.
reliability: $(BIN)/.test
	$(PIP) install -e '.[fuzz]'
	$(BIN)/python -m tests.reliability --full $(ARGS)

# What a user gets, and nothing else: the list of parts is made from an environment of its own.
$(SHIPPED)/.installed: pyproject.toml
	rm -rf $(SHIPPED)
	$(BIN)/python -m venv $(SHIPPED)
	$(SHIPPED)/bin/python -m pip --disable-pip-version-check --quiet install .
	$(SHIPPED)/bin/python -m pip --disable-pip-version-check --quiet uninstall --yes pip setuptools
	@touch $@

# The tools that look at it bring parts of their own.
$(SUPPLY)/.installed: .ci/requirements-supply.txt
	rm -rf $(SUPPLY)
	$(BIN)/python -m venv $(SUPPLY)
	$(SUPPLY)/bin/python -m pip --disable-pip-version-check --quiet install -r $<
	@touch $@

sbom: $(BIN)/.run $(SHIPPED)/.installed $(SUPPLY)/.installed
	$(SUPPLY)/bin/python .ci/sbom.py $(SHIPPED)/bin/python build/sbom.cdx.json

audit: $(BIN)/.run $(SHIPPED)/.installed $(SUPPLY)/.installed
	$(SUPPLY)/bin/python .ci/audit.py $(SHIPPED)

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist *.egg-info
	rm -f .coverage .coverage.*
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
