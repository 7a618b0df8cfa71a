# Each verb sets up what it needs; the second run starts at once.
PYTHON ?= python3.11
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready-dev

.PHONY: demo test check-all lint clean

demo: $(READY)
	$(BIN)/zoo demo --out demo

test: $(READY) lint
	$(BIN)/python -m pytest -m "not slow" -n 2 --dist loadfile --no-loadscope-reorder

check-all: $(READY) lint
	$(BIN)/python -m pip install -q -c constraints.txt torch==2.13.0 transformers==5.23.0
	$(BIN)/python -m pip install -q --no-deps torchvision==0.28.0 timm==1.0.31  # without their choice of a build of torch
	$(BIN)/python -m pytest

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(READY): pyproject.toml constraints.txt
	command -v $(PYTHON) >/dev/null || { echo "Python 3.11 is needed; or name another: make PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -c constraints.txt -e ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
