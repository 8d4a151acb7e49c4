# `make` alone lists the targets. Everything is installed into $(VENV); nothing outside it is touched.

VENV ?= .venv
JOBS ?= 2
PYTEST_ARGS ?=
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	"$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo "$$p" && break; done)

# Measured is the torch that is there, which a machine with a GPU may have had before this project.
GPU_PYTHON ?= $(if $(wildcard $(VENV)/bin/python),$(VENV)/bin/python,$(PYTHON))
GPU_ARGS ?= --minutes 12

CONSTRAINTS := .ci/constraints.txt
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet
pin = "$$(grep '^$(1)==' $(CONSTRAINTS))"

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo demo-full test versions gpu check format site clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(VENV)/.installed  ## plan and count a 124M GPT-2; prove, train and time a small one (within 3 minutes)
	$(BIN)/python examples/demo.py

demo-full: $(VENV)/.installed  ## the same, and prove and time the 124M GPT-2 too (about 10 minutes)
	$(BIN)/python examples/demo.py --full

test: $(VENV)/.installed-dev  ## run the test suite (JOBS=n processes, PYTEST_ARGS=... for pytest)
	$(BIN)/python -m pytest -q -n $(JOBS) --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

versions: $(VENV)/.created  ## run the suite under each torch, 2.11 to 2.15; goes on where it ended (hours; VERSIONS_ARGS=..)
	$(BIN)/python .ci/versions.py $(VERSIONS_ARGS)

gpu:  ## measure on the GPU here, by worth, within 12 minutes; goes on where it ended (GPU_ARGS=..; docs/gpu.md)
	PYTHONPATH=.:passes:kernels:$$PYTHONPATH $(GPU_PYTHON) -m kernels.benchmarks.gpu $(GPU_ARGS)

check: $(VENV)/.installed-dev  ## formatting, lint, types, import rules, and that the tests can be collected
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy --strict
	$(BIN)/lint-imports
	$(BIN)/python -m pytest --collect-only -qq

format: $(VENV)/.installed-dev  ## format the code and fix what lint can fix
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

site: $(VENV)/.installed-dev  ## build the documentation into build/site, strictly: a broken link fails
	$(BIN)/python -m sphinx --fail-on-warning --keep-going --quiet -c docs/site -d build/site-cache . build/site
	@echo "built build/site/index.html"

clean:  ## remove the virtual environment, build results and caches
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis

$(VENV)/.created:
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer was not found: make PYTHON=/path/to/python3.12"; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "$(PYTHON) is older than 3.11: make PYTHON=/path/to/python3.12"; exit 1; }
	"$(PYTHON)" -m venv $(VENV)
	@touch $@

# torch goes first and alone, by its exact pin: a range next to other packages may select a much larger build.
$(VENV)/.installed: pyproject.toml $(CONSTRAINTS) | $(VENV)/.created
	$(PIP) $(call pin,torch)
	$(PIP) -c $(CONSTRAINTS) -e '.[hf]'
	@touch $@

# torchvision's ordinary wheel belongs to one torch build. With another one its import fails, and transformers, which
# imports it wherever it is found beside Pillow, fails with it. So timm and torchvision go without their dependencies
# into a folder of their own, which only the tests that need timm put on their path.
$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP) -c $(CONSTRAINTS) -e '.[hf,dev]' pillow
	$(PIP) --no-deps --upgrade --target $(VENV)/vision $(call pin,timm) $(call pin,torchvision)
	@touch $@
