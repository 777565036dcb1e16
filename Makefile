# Each target does its own set-up: a virtual environment in .venv with everything a developer needs.
PYTHON ?= python3
JOBS ?= 2
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: install demo test lint bench notebooks smoke clean

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[dev]"
	touch $(STAMP)

demo: install
	$(BIN)/dinodomain demo out=demo-out

# Two processes, each with one thread for arithmetic: the cores that any machine has.
test: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS)

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: install
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[bench]"
	# These take hours: run them by themselves; they go on where they were stopped.
	for file in $(filter-out benchmarks/quality.py benchmarks/audit_power.py,$(wildcard benchmarks/[a-z]*.py)); do $(BIN)/python $$file --json out/$$(basename $$file .py).json; done

notebooks: install
	$(BIN)/python notebooks/run.py

# The built wheel in a fresh environment, away from the checkout: configs, domains and entry points must come from the wheel.
smoke: install
	bash .ci/smoke $(BIN)/python

clean:
	rm -rf $(VENV) dist demo-out out
