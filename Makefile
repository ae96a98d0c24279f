# `make demo` and `make test` do all the set-up that a fresh machine needs; a second run does not install again.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
# A torch that constraints.txt does not name comes with its own CUDA packages, Triton and bound of setuptools.
TORCH  :=
OF_TORCH := ^(torch|triton|setuptools|cuda-|nvidia-(cu|nccl|nvjitlink|nvshmem|nvtx))
CONSTRAINTS := $(if $(TORCH),sed -E '/$(OF_TORCH)/d' constraints.txt && echo torch==$(TORCH),cat constraints.txt)
# Parts that wait for processes now and then, side by side; the first has Rays that users and pods start, the second one
# whose workers are forked, and all tests for which such a Ray is enough.
JOBS   := tests/jobs/test_ray_job.py tests/k8s
RAY    := tests/cluster $(addprefix tests/jobs/test_,crash.py evaluate.py estimate.py bench_step.py bench_exchange.py)
OTHERS := tests $(addprefix --ignore=,$(JOBS) $(RAY))
# Enough to tell whether another Python or torch will do: nets, input, Ray, and a chain that is killed.
QUICK  := tests/test_imports.py tests/pipelines tests/cluster $(addprefix tests/jobs/test_,crash.py evaluate.py run.py)
CHECK  := $(BIN)/ruff check . && $(BIN)/ruff format --check --quiet . && $(BIN)/mypy
# Programs that the shell line `#!/usr/bin/env -S python -m jobs` starts must be those of the environment.
export PATH := $(abspath $(BIN)):$(PATH)

.PHONY: demo test test-versions quick check docs manifests image check-image soak rehearse bench bench-network install constraints \
  clean help

help:
	@echo "make demo   the main job on an embedded data set: a few minutes on 2 cores, no GPU needed"
	@echo "make test   ruff, mypy and the whole test suite"
	@echo "make test-versions PYTHON=python3.13 TORCH=2.12.0   its main parts with these, in an environment below .versions"
	@echo "make docs   docs/settings.md and jobs/job.schema.json, out of the models that they describe"
	@echo "make manifests  k8s/*.yaml out of k8s/source/; with VALUES=mine.yaml OUT=FOLDER a site's own"
	@echo "make image  the image of the pods, with docker, podman or buildah; BASE=debootstrap needs no registry (k8s/build-image)"
	@echo "make check-image  that image as the manifests run it, through a whole chain: some minutes; docker or podman"
	@echo "make soak   the input over many epochs, on generated pictures or PHOTOS=FOLDER, and failures: half an hour"
	@echo "make rehearse  what is checked and measured on a GPU, small, on any machine: some minutes"
	@echo "make bench  the input beside its peers, on DATA=DATASET: some minutes for each S"
	@echo "make bench-network  the exchange of gradients over links of 1, 10 and 25 Gbit/s: some minutes, as root; WORKERS=\"2 4\""

demo: $(READY)
	@$(BIN)/verydeep run jobs/demo.yaml

test: $(READY)
	@logs=$$(mktemp -d); failed=0; \
	 { $(CHECK); } >$$logs/1 2>&1 & check=$$!; \
	 $(BIN)/python -m pytest $(JOBS) >$$logs/2 2>&1 & jobs=$$!; \
	 $(BIN)/python -m pytest $(RAY) >$$logs/3 2>&1 & ray=$$!; \
	 $(BIN)/python -m pytest $(OTHERS) || failed=1; \
	 for part in $$check $$jobs $$ray; do wait $$part || failed=1; done; \
	 cat $$logs/*; rm -r $$logs; exit $$failed

# Either of the two may be left out; what the environment is called says what is in it.
test-versions:
	@python=$$($(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])') && \
	 $(MAKE) --no-print-directory VENV=".versions/python-$$python$(addprefix -torch-,$(TORCH))" quick

quick: $(READY)
	@$(BIN)/python -c 'import sys, torch; print("Python", sys.version.split()[0], " torch", torch.__version__)'
	@$(BIN)/python -m pytest $(QUICK)

check: $(READY)
	@$(CHECK)

docs: $(READY)
	@$(BIN)/python -m jobs.describe

manifests: $(READY)
	@$(BIN)/python -m k8s.render $(addprefix --values ,$(VALUES)) $(addprefix --out ,$(OUT))

image:
	@k8s/build-image

check-image: $(READY)
	@$(BIN)/python -m pytest -s tests/k8s/check_image.py

soak: $(READY)
	@PHOTOS="$(PHOTOS)" $(BIN)/python -m pytest -s tests/soak/soak_input.py tests/soak/soak_failures.py \
	  tests/soak/soak_silent.py tests/soak/soak_stop.py tests/soak/soak_chain.py tests/soak/soak_head.py \
	  tests/soak/soak_grow.py tests/soak/soak_demo.py

rehearse: $(READY)
	@$(BIN)/python -m benchmarks.gpu --rehearse

bench: $(READY)
	@test -n "$(DATA)" || { echo "name a data set: make bench DATA=~/verydeep/data/mine/train" >&2; exit 2; }
	@for scale in "256 512" 384 256; do \
	   echo "S $$scale"; $(BIN)/verydeep bench input "$(DATA)" --scale $$scale || exit 1; done

bench-network: $(READY)
	@$(BIN)/python -m benchmarks.network $(if $(WORKERS),--workers $(WORKERS)) $(addprefix --json ,$(JSON))

install: $(READY)

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "verydeep needs Python 3.11 or newer; name one: make PYTHON=python3.12 ..." >&2; exit 2; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV) || \
	  { echo "The environment cannot be made; on Debian and Ubuntu: apt install python3-venv" >&2; exit 2; }
	@echo "Installing into $(VENV): some minutes, once."
	@{ $(CONSTRAINTS); } > $(VENV)/constraints.txt
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint $(VENV)/constraints.txt --editable '.[dev]'
	@touch $@

constraints:
	@{ head -n 1 constraints.txt; \
	   uv pip compile --universal --python-version 3.11 --extra dev --upgrade --no-header --no-annotate pyproject.toml; \
	 } > constraints.new && mv constraints.new constraints.txt

clean:
	rm -rf $(VENV) .versions .pytest_cache .mypy_cache .ruff_cache *.egg-info
