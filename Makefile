# Everything from a fresh checkout: `make demo` to see it work, `make test` to check it. Needs Python >= 3.10 with venv.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
OUT ?= fogline-run/demo
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
# Where pip's own index has only the build with CUDA and there is no NVIDIA card, a tenth of the download does:
# make demo TORCH_INDEX='--index-url https://download.pytorch.org/whl/cpu'
TORCH_INDEX ?=
PYTEST := $(BIN)/python -m pytest
# Processes that run the quick tests. One more than two cores can keep busy, since half of the time is waiting.
TESTERS ?= 3
# The contract as released, which a change must not break. To break it on purpose, delete this file and `make proto`.
BASELINE := proto/baseline.json

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help install demo test lint format unit test-slow test-gpu compose-test docs proto bench clean

help:
	@echo 'make demo       install, run 1 cloud server, 1 fog node and 3 edge agents on the built-in clip, write a report'
	@echo 'make test       install, lint, and run the quick tests'
	@echo 'make lint       ruff, mypy, import rules, the contract'
	@echo 'make test-slow  the tests that take minutes'
	@echo 'make test-gpu   the tests that need an accelerator'
	@echo 'make compose-test  build the containers and run the cluster of deploy/compose'
	@echo 'make proto      generate code from proto/'
	@echo 'make docs       bring the generated parts of docs/ up to date'
	@echo 'make bench      measure every published figure (hours)'
	@echo 'make clean      remove the environment and caches'

install: $(STAMP)

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "error: $(PYTHON) is older than 3.10; install a newer Python or run make PYTHON=python3.11"; exit 2; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	  { echo "error: $(PYTHON) has no venv module; install it (Debian: apt install python3-venv) and try again"; exit 2; }
	@echo '[1/4] making $(VENV)'
	@$(PYTHON) -m venv $(VENV)

# torch comes first and alone: its own index has the small CPU build, and is asked for nothing else.
$(STAMP): $(BIN)/python pyproject.toml constraints.txt
	@echo '[2/4] updating pip'
	@$(PIP) --upgrade 'pip>=24'
	@echo '[3/4] installing torch, 200 MB or more: some minutes on a slow line'
	@$(PIP) --no-deps $(TORCH_INDEX) -c constraints.txt torch
	@echo '[4/4] installing fogline and its tools'
	@$(PIP) -c constraints.txt -e '.[torch,up,compare,dev]'
	@touch $@

demo: $(STAMP)
	$(BIN)/fogline up --edges 3 --image-codec siren --out $(OUT)
	@echo "report: $(abspath $(OUT))/report.html"

test: lint unit

unit: $(STAMP)
	OMP_NUM_THREADS=1 $(PYTEST) -q -n $(TESTERS) --dist worksteal -m 'not slow and not gpu'

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy -p fogline
	$(BIN)/lint-imports
	$(BIN)/buf lint
	$(BIN)/buf format --diff --exit-code
	$(BIN)/buf breaking --against $(BASELINE)
	@$(BIN)/buf build --exclude-source-info -o $(VENV)/baseline.json && cmp -s $(VENV)/baseline.json $(BASELINE) || \
	  { echo 'error: $(BASELINE) is stale; run `make proto`'; exit 1; }
	$(BIN)/python proto/generate.py --check
	$(BIN)/python docs/generate.py --check
	$(BIN)/python -m fogline.deploy.grafana --check

format: $(STAMP)
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

test-slow: $(STAMP)
	$(PYTEST) -m 'slow and not gpu' --timeout 1800

test-gpu: $(STAMP)
	$(PYTEST) -m gpu --timeout 1800 || [ $$? -eq 5 ]  # 5: there are none

# Docker with its compose plugin, or podman: where a host has neither, the tests say why and are skipped.
compose-test: $(STAMP)
	@docker compose version >/dev/null 2>&1 || $(PIP) -c constraints.txt podman-compose
	$(PYTEST) -x -m slow tests/deploy/test_compose_stack.py

docs: $(STAMP)
	$(BIN)/python docs/generate.py
	$(BIN)/python -m fogline.deploy.grafana

proto: $(STAMP)
	test ! -e $(BASELINE) || $(BIN)/buf breaking --against $(BASELINE)
	$(BIN)/buf build --exclude-source-info -o $(BASELINE)
	$(BIN)/python proto/generate.py

bench: $(STAMP)
	$(BIN)/python -m fogline.benchmarks

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
