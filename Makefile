# The two commands:  make run  ·  make test      (make help lists the others)
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
WORKERS ?= 3
BENCH ?= quick
CAMPAIGN ?=
MODEL ?= village
REPETITIONS ?= 3
GPU ?=
TRIALS ?= 1

export OMP_NUM_THREADS ?= 1

.DEFAULT_GOAL := help
.PHONY: help run test test-page test-cluster soak lint types check bundle check-bundle bench-optimizers bench-several bench-rungs bench-campaign bench-job reference clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: $(BIN)/python pyproject.toml constraints.txt
	@echo "installing into $(VENV) (a few minutes the first time)"
	$(PIP) --editable .
	@touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(PIP) --editable '.[dev]'
	@touch $@

run: $(VENV)/installed  ## install, then run the default campaign: 16 real fine-tunings of a tiny model
	$(BIN)/hpo-cluster run

test: $(VENV)/installed-dev  ## install, then run all tests
	$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadscope --no-loadscope-reorder --quiet

test-page: $(VENV)/installed-dev  ## as root on Debian: install a browser, look at a report's page with it
	tests/page/install
	$(BIN)/python -m pytest tests/page --quiet -p no:xdist

test-cluster: $(VENV)/installed-dev  ## as root on Debian: install and start Slurm and OAR, run the tests against both
	tests/cluster/install
	tests/cluster/run $(abspath $(BIN)/python)

soak: $(VENV)/installed-dev  ## as root on Debian: run hundreds of trials on 64 Slurm nodes while jobs and drivers are killed
	tests/cluster/install
	tests/cluster/soak $(abspath $(BIN)/python)

lint: $(VENV)/installed-dev  ## check style and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/installed-dev  ## check types (mypy strict)
	$(BIN)/mypy

check: test lint types  ## run everything that must pass before a change is merged

bundle: $(VENV)/installed  ## build the bundled model, data and tasks again
	$(BIN)/python tools/build_bundle.py

check-bundle: $(VENV)/installed  ## show that the bundled objective is meaningful (docs/objective/village.md)
	$(BIN)/python tools/check_bundle.py

$(VENV)/installed-peers: $(VENV)/installed constraints-peers.txt
	$(PIP) --constraint constraints-peers.txt --editable '.[peers]'
	$(PIP) --constraint constraints-peers.txt --no-deps HEBO  # its pins exclude our numpy, with which it works
	@touch $@

bench-optimizers: $(VENV)/installed-peers  ## compare these optimizers with other libraries; BENCH=full: hours instead of minutes
	$(BIN)/python -m benchmarks.optimizers.run $(BENCH)
	$(BIN)/python -m benchmarks.optimizers.report

bench-several: $(VENV)/installed-peers  ## compare optimizers of several objectives; BENCH=full: hours instead of minutes
	$(BIN)/python -m benchmarks.several_objectives.run $(BENCH)
	$(BIN)/python -m benchmarks.several_objectives.report

bench-rungs: $(VENV)/installed-peers  ## compare optimizers with rungs and without; BENCH=full: hours instead of minutes
	$(BIN)/python -m benchmarks.rungs.run $(BENCH)
	$(BIN)/python -m benchmarks.rungs.report

bench-campaign: $(VENV)/installed  ## measure the driver: 10 000 simulated trials on 1 000 workers; CAMPAIGN="--trials 500 --workers 100"
	$(BIN)/python -m benchmarks.campaign.run $(CAMPAIGN)

bench-job: $(VENV)/installed  ## one evaluation by our job and by LitGPT's commands; MODEL=medium REPETITIONS=5, TRIALS=10: ten in one job, GPU=1: a 1B model
	$(BIN)/python -W ignore -m benchmarks.job.run $(MODEL) --repetitions $(REPETITIONS) --trials $(TRIALS) $(if $(GPU),--gpu)

reference: $(VENV)/installed-dev  ## write docs/reference/configuration.md and failures.md again
	$(BIN)/python tools/make_reference.py

clean:  ## remove the environment and caches; campaigns stay
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache build dist *.egg-info
