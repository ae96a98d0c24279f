# `make demo` and `make test` do all the set-up that a fresh machine needs; a second run does not install again.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
# These wait for minutes, and have a Ray of their own each: beside the other tests.
JOBS   := tests/jobs/test_ray_job.py
CRASH  := tests/jobs/test_crash.py
# Programs that the shell line `#!/usr/bin/env -S python -m jobs` starts must be those of the environment.
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: demo test check docs soak bench install constraints clean help

help:
	@echo "make demo   the main job on an embedded data set: a few minutes on 2 cores, no GPU needed"
	@echo "make test   ruff, mypy and the whole test suite"
	@echo "make docs   docs/settings.md and jobs/job.schema.json, out of the models that they describe"
	@echo "make soak   the input over many epochs, on generated pictures or PHOTOS=FOLDER, and failures: half an hour"
	@echo "make bench  the input beside its peers, on DATA=DATASET: some minutes for each S"

demo: $(READY)
	@$(BIN)/verydeep run jobs/demo.yaml

test: check
	@logs=$$(mktemp -d); $(BIN)/python -m pytest $(JOBS) >$$logs/jobs 2>&1 & jobs=$$!; \
	 $(BIN)/python -m pytest $(CRASH) >$$logs/crash 2>&1 & crash=$$!; \
	 $(BIN)/python -m pytest --ignore $(JOBS) --ignore $(CRASH); others=$$?; \
	 wait $$crash; crash=$$?; wait $$jobs; jobs=$$?; \
	 cat $$logs/crash $$logs/jobs; rm -r $$logs; exit $$((jobs | crash | others))

check: $(READY)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check --quiet .
	@$(BIN)/mypy

docs: $(READY)
	@$(BIN)/python -m jobs.describe

soak: $(READY)
	@PHOTOS="$(PHOTOS)" $(BIN)/python -m pytest -s tests/soak/soak_input.py tests/soak/soak_failures.py \
	  tests/soak/soak_silent.py tests/soak/soak_stop.py

bench: $(READY)
	@test -n "$(DATA)" || { echo "name a data set: make bench DATA=~/verydeep/data/mine/train" >&2; exit 2; }
	@for scale in "256 512" 384 256; do \
	   echo "S $$scale"; $(BIN)/verydeep bench input "$(DATA)" --scale $$scale || exit 1; done

install: $(READY)

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "verydeep needs Python 3.11 or newer; name one: make PYTHON=python3.12 ..." >&2; exit 2; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV) || \
	  { echo "The environment cannot be made; on Debian and Ubuntu: apt install python3-venv" >&2; exit 2; }
	@echo "Installing into $(VENV): some minutes, once."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

constraints:
	@{ head -n 1 constraints.txt; \
	   uv pip compile --universal --python-version 3.11 --extra dev --upgrade --no-header --no-annotate pyproject.toml; \
	 } > constraints.new && mv constraints.new constraints.txt

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache *.egg-info
