# Two commands on a fresh machine with Python >= 3.11 and make:
#   make quickstart    real images, a trained and evaluated model, about two minutes on two cores
#   make test          lint, types, every test
#   make kd-quickstart a teacher, a small student, and the student with the teacher's help
#   make finetune-quickstart  fine-tuning with 10 images a class, in five ways
#   make search-smoke         every search of configs/search, from its first trial to its report, with a few digits
#   make search-quickstart    a network, its hyper-parameters and its augmentation, searched in ten minutes
# Paths are relative throughout, so a checkout whose path holds a space works.

PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
# Extensions that an installation in place compiles: a newer source means another one.
SOURCES := $(wildcard up/*/*.c up/*.h up/*/*.h)
PIP := $(PY) -m pip --disable-pip-version-check --quiet
# Files of tests are shared out to this many processes, the long ones first (testpaths in pyproject.toml): one more than two
# cores, because tests of signals and of lost ranks wait for most of their time.
JOBS ?= 3
PYTEST = PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(PY) -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder

.PHONY: quickstart kd-quickstart finetune-quickstart search-quickstart search-smoke test lint unit integration ranks soak lowest lowest-tests docs clean
.DEFAULT_GOAL := quickstart

$(PY):
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else f"Python 3.11 or newer is needed, {sys.version.split()[0]} was found; name another with: make PYTHON=python3.12")'
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: setup.py constraints.txt $(SOURCES) | $(PY)
	@echo "installing up with its demo and deploy extras into $(VENV) (torch is large: minutes on a slow line)"
	@$(PIP) install -c constraints.txt -e '.[demo,deploy]'
	@touch $@

$(VENV)/.dev: setup.py constraints.txt $(SOURCES) | $(PY)
	@echo "installing up with its dev extras into $(VENV)"
	@$(PIP) install -c constraints.txt -e '.[dev]'
	@touch $@ $(VENV)/.demo $(VENV)/.search

$(VENV)/.search: setup.py constraints.txt $(SOURCES) | $(PY)
	@echo "installing up with its demo, deploy, search and viz extras into $(VENV)"
	@$(PIP) install -c constraints.txt -e '.[demo,deploy,search,viz]'
	@touch $@ $(VENV)/.demo

quickstart: $(VENV)/.demo
	@$(PY) tools/quickstart.py

kd-quickstart: $(VENV)/.demo
	@$(PY) tools/kd_quickstart.py

finetune-quickstart: $(VENV)/.demo
	@$(PY) tools/finetune_quickstart.py

search-quickstart: $(VENV)/.search
	@$(PY) tools/search_quickstart.py

search-smoke: $(VENV)/.search
	@$(PY) tools/search_smoke.py

test: $(VENV)/.dev lint
	$(PYTEST) -m "not slow"

lint: $(VENV)/.dev
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

unit: JOBS = 2
unit: $(VENV)/.dev
	$(PYTEST) -m unit tests/unit tests/architecture

integration: $(VENV)/.dev
	$(PYTEST) -m integration

ranks: $(VENV)/.dev
	$(PYTEST) -m ranks tests/integration

soak: $(VENV)/.dev
	$(PY) -m pytest -m slow

# The lowest versions that setup.py allows, in an environment of their own.
lowest: $(VENV)/.dev
	$(PYTHON) -m venv $(VENV)-lowest
	$(PY) tools/lowest_versions.py > $(VENV)-lowest/constraints.txt
	$(VENV)-lowest/bin/python -m pip install --quiet -c $(VENV)-lowest/constraints.txt -e '.[dev]'
	$(MAKE) VENV=$(VENV)-lowest lowest-tests

# Old releases use what newer ones of their own dependencies deprecate.
lowest-tests:
	$(PYTEST) -m "not slow" -W ignore::DeprecationWarning -W ignore::PendingDeprecationWarning

docs: $(VENV)/.dev
	$(PY) tools/write_docs.py

clean:
	rm -rf $(VENV) $(VENV)-lowest data/digits runs
