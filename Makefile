# The RED Book.  `make help` lists what can be made.  Needs only Python >= 3.11 and make.
PROFILE ?= smoke
PORT    ?= 8000
JOBS    ?=
VENV    := .venv
BIN     := $(VENV)/bin
READY   := $(VENV)/.ready

# PYTHON=... overrides the choice; otherwise the first of these that is 3.11 or newer.
PYTHON  ?= $(shell for p in python3.13 python3.12 python3.11 python3 python; do \
             "$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && echo "$$p" && break; done)

off         := 0 no false
BUILD_FLAGS := --profile $(PROFILE) $(if $(JOBS),--jobs $(JOBS)) $(if $(filter-out $(off),$(STRICT)),--strict)
TEST_FLAGS  ?= -n auto --dist loadgroup --no-loadscope-reorder
# FAST=1: a minute, for each save; SLOW=1: all there is, for the night; neither: all but that
TIER        := $(if $(filter-out $(off),$(FAST)),-m "not (slow or long or book or browser or data)",$(if $(filter-out $(off),$(SLOW)),-m ""))

.PHONY: help env book test serve lab lint clean distclean
.DEFAULT_GOAL := help

help:  ## what can be made
	@grep -hE '^[a-z]+:.*## ' $(firstword $(MAKEFILE_LIST)) | sed -e 's/:.*## /\t/' | awk -F '\t' '{printf "  make %-10s %s\n", $$1, $$2}'
	@echo
	@echo '  make book PROFILE=laptop   real data (see data/README.md)'

env: $(READY)  ## the environment alone, in .venv, from requirements.lock

$(READY): requirements.lock pyproject.toml
	@if [ -z "$(PYTHON)" ]; then \
	  echo 'The RED Book needs Python 3.11 or newer; none of python3.13, python3.12, python3.11, python3, python is.' >&2; \
	  echo 'Install one, or name it: make PYTHON=/path/to/python3.12 book' >&2; exit 2; fi
	@if ! $(BIN)/python -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then \
	  echo "Making $(VENV) with $(PYTHON)"; \
	  "$(PYTHON)" -m venv --clear $(VENV) || { rm -rf $(VENV); \
	    echo 'Could not make a virtual environment (on Debian and Ubuntu: apt install python3-venv).' >&2; exit 2; }; fi
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(BIN)/python -m ensurepip --default-pip >/dev/null
	@echo 'Installing the pinned packages (once; PyTorch is large)'
	@if $(BIN)/python -m pip install --quiet --disable-pip-version-check uv; then \
	  VIRTUAL_ENV="$(CURDIR)/$(VENV)" $(BIN)/python -m uv pip install --quiet -r requirements.lock && \
	  VIRTUAL_ENV="$(CURDIR)/$(VENV)" $(BIN)/python -m uv pip install --quiet --no-deps -e .; \
	else \
	  echo 'uv is not to be had here; going on with pip'; \
	  $(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock && \
	  $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -e .; \
	fi
	@touch $@

book: $(READY)  ## run every chapter and build _build/html/index.html; STRICT=1: fail if a claim does not hold
	@$(BIN)/python -m lib.cli build $(BUILD_FLAGS)

test: $(READY)  ## the tests (builds the smoke book once); FAST=1: those of a minute, SLOW=1: all of the night
	@OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/python -m pytest $(TIER) $(TEST_FLAGS)

serve: $(READY)  ## serve the built book on localhost
	@test -f _build/html/index.html || { echo 'No book yet: run `make book` first.' >&2; exit 2; }
	@echo "The book is at http://127.0.0.1:$(PORT)/ (Ctrl-C to stop)"
	@$(BIN)/python -m http.server --bind 127.0.0.1 --directory _build/html $(PORT)

lab: $(READY)  ## open the chapters in JupyterLab
	@$(BIN)/python -m jupyter lab --ServerApp.root_dir="$(CURDIR)" --LabApp.default_url=/lab/tree/notebooks

lint: $(READY)  ## ruff, mypy, and no outputs in the notebooks
	@$(BIN)/python -m ruff check .
	@$(BIN)/python -m ruff format --check --quiet .
	@$(BIN)/python -m mypy lib
	@ls notebooks/*.ipynb >/dev/null 2>&1 || exit 0; \
	  $(BIN)/nbstripout --verify --keep-id notebooks/*.ipynb

clean:  ## remove what was built (keeps .venv, and the data in data/cache)
	@rm -rf _build .pytest_cache .mypy_cache .ruff_cache .hypothesis
	@find lib tests book -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean  ## also the environment
	@rm -rf $(VENV) node_modules *.egg-info
