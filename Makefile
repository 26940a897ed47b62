# The words that people and CI use: demo | test | check | docs | bench | clean
# Needs git, make and a Python with venv (on Debian and Ubuntu: apt-get install python3-venv); no root.

PYTHON ?= $(shell for v in 3.13 3.12 3.11 3.10; do \
	if python$$v -c 'import ensurepip, venv' >/dev/null 2>&1; then echo python$$v; exit; fi; done; \
	python3 -c 'import ensurepip, sys, venv; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' >/dev/null 2>&1 && echo python3)
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

.PHONY: demo test check docs bench clean emulator
.DEFAULT_GOAL := demo

demo: $(VENV)/.installed emulator
	$(BIN)/edgeprune build --target rpi4 --out runs/demo --force
	@echo "The report: $(CURDIR)/runs/demo/report.html"

test: $(VENV)/.installed-dev emulator
	$(BIN)/python -m pytest -n 2 --dist worksteal

check: $(VENV)/.installed-dev $(VENV)/typed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/test_architecture.py
	$(BIN)/python docs/generate.py --check

docs: $(VENV)/.installed-dev
	$(BIN)/python docs/generate.py

bench: $(VENV)/.installed-dev
	@test -n "$(MODEL)" -a -n "$(DATA)" || { echo "Say on what: make bench MODEL=resnet8.h5 DATA=cifar10.npz" >&2; exit 1; }
	$(BIN)/python benchmarks/speed.py $(MODEL) $(DATA)

# Where the emulator cannot be had, this says what is missing; its tests then say why they are skipped.
emulator: $(VENV)/.installed
	$(BIN)/edgeprune emulator install || echo "Going on without the Arm emulator; every report and skipped test says why."

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# One stamp per set of packages, so that a second make installs nothing.
$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP) install --quiet --editable '.[dev]'
	@touch $@

# mypy finds edgeprune.models at models/ and so on by these links, as Python does by setup.py's package map.
$(VENV)/typed: $(VENV)/bin/python
	mkdir -p $@/edgeprune
	for room in models devices pipelines; do ln -sfn $(CURDIR)/$$room $@/edgeprune/$$room; done

$(VENV)/.installed: setup.py pyproject.toml $(VENV)/bin/python
	@echo "Installing edgeprune and TensorFlow into $(VENV) (about 700 MB to fetch, once) ..."
	$(PIP) install --quiet --editable .
	@touch $@

$(VENV)/bin/python:
	@test -n "$(PYTHON)" || { echo "No Python 3.10 to 3.13 with venv was found. Install one, on Debian and Ubuntu:" \
		"apt-get install python3-venv. Or name one: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
