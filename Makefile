# The commands of the README and of CI. `make help` lists them.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
BIN := $(CURDIR)/$(VENV)/bin
KILLS ?= 60
SEED ?= 1
PACE ?= short
WORKERS ?= 1
LOCK ?= requirements.lock
WHEELHOUSE ?= wheelhouse
BENCH ?= bench
export TF_CPP_MIN_LOG_LEVEL := 3
export TF_ENABLE_ONEDNN_OPTS := 1

.PHONY: help install demo test faults lint up down migrate worker worker-training secrets beat flower bench pictures wheelhouse clean

help: ## List the commands.
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

install: $(VENV)/.installed ## Build the environment in .venv.

$(VENV)/.installed: requirements-dev.lock pyproject.toml
	@test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing into $(VENV) (about 2 GB, TensorFlow is most of it) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-input --require-hashes -r requirements-dev.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-input --no-deps --no-build-isolation -e .
	@touch $@

demo: install ## Screen a synthetic archive, broken files among it.
	@rm -rf demo
	@$(BIN)/lesion-model synthesize demo/archive
	@LESION_SCREEN_HOME=$(CURDIR)/demo/home $(BIN)/python tests/acceptance/demo.py demo/archive demo/results

# One process more than cores, as tests that kill things wait more than they compute; with a thread a core in each of
# them, TensorFlow's would wait for one another. One test at a time to each: they take from no time to two minutes.
test: install lint ## Run every check and test.
	@TF_NUM_INTRAOP_THREADS=1 $(BIN)/python -m pytest -n $$(($$(nproc) + 1)) --maxprocesses 4 --dist load --maxschedchunk 1

faults: install ## Kill things while an archive is screened: make faults KILLS=60 SEED=1 PACE=short|production
	@PYTHONPATH=$(CURDIR) $(BIN)/python tests/faults/campaign.py --kills $(KILLS) --seed $(SEED) --pace $(PACE)

lint: install ## Style, types and the directions of imports.
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-cache

up: install ## Start every service of one machine in the background: make up WORKERS=2
	@$(BIN)/lesion-screen up --workers $(WORKERS)

down: install ## Stop them.
	@$(BIN)/lesion-screen down

migrate: install ## Bring the ledger's schema up to date and register the shipped model.
	@$(BIN)/python -m worker.register

worker: install ## Start one screening worker (WORKER_BROKER_URL and DB_URL say where).
	@REMAP_SIGTERM=SIGQUIT $(BIN)/celery -A worker.app worker -Q screening,rendering -c 1 --loglevel WARNING

worker-training: install ## Start the worker that trains models.
	@REMAP_SIGTERM=SIGQUIT $(BIN)/celery -A worker.app worker -Q training -c 1 --loglevel WARNING

secrets: install ## Draw the passwords that docker-compose.yml mounts.
	@$(BIN)/python -m worker.secrets secrets

beat: install ## Strike the hours of WORKER_RETRAIN_CRON.
	@$(BIN)/celery -A worker.app beat --loglevel WARNING

flower: install ## Watch workers and tasks (FLOWER_BASIC_AUTH, WORKER_BROKER_URL and DB_URL say how and where).
	@$(BIN)/python -m worker.monitor

bench: install ## Race with the usual ways on the same files: make bench IMAGES=DIR BACKBONE=NAME BENCH=bench
	@PYTHONPATH=$(CURDIR) TF_CPP_MIN_LOG_LEVEL=3 $(BIN)/python tests/benchmarks/bench.py $(if $(IMAGES),--images $(IMAGES)) $(if $(BACKBONE),--backbone $(BACKBONE)) --out $(BENCH)

pictures: install ## Draw the README's pictures anew (needs Chromium).
	@PYTHONPATH=$(CURDIR) $(BIN)/python tests/acceptance/pictures.py docs

wheelhouse: install ## Gather every wheel for a machine without a network, and say what they are: make wheelhouse LOCK=requirements.lock
	@rm -rf $(WHEELHOUSE)
	@$(BIN)/python -m pip download --quiet --disable-pip-version-check --no-input --only-binary :all: --require-hashes --dest $(WHEELHOUSE) -r $(LOCK)
	@$(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-input --no-deps --no-build-isolation --wheel-dir $(WHEELHOUSE) .
	@cp $(LOCK) $(WHEELHOUSE)/requirements.lock
	@$(BIN)/cyclonedx-py requirements --pyproject pyproject.toml --output-reproducible --output-format JSON --output-file $(WHEELHOUSE)/sbom.cdx.json $(LOCK)
	@echo "$$(ls $(WHEELHOUSE)/*.whl | wc -l) wheels and sbom.cdx.json are in $(WHEELHOUSE); RUNBOOK.md says how they are installed."

clean: ## Remove the environment, the demo and every cache.
	rm -rf $(VENV) demo build dist wheelhouse *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
