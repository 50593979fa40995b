# `make help` lists the targets. Each one makes .venv by itself when it is missing or out of date.

VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
# The first Python of these that is 3.11 to 3.13 and can make environments; name another with PYTHON=.
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
    $$p -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' 2>/dev/null \
    && echo $$p && break; done)

CORPUS     ?= sample
TEACHER    ?= embedded
CACHE      ?= runs/cache
RUN        ?= runs/student
CONFIG     ?=
CHECKPOINT ?= $(RUN)
DATA       ?= $(CACHE)
ARGS       ?=

DEMO        := demo
DEMO_STEPS  ?= 100
DEMO_TRAIN  := --set model.preset=tiny --set train.init=tiny-x4-gt --set train.steps=$(DEMO_STEPS) --set train.batch_size=8 \
    --set train.patch=32 --set train.lr=5e-5 --set train.lr_warmup=20 --set train.val_every=25 --set train.save_every=50 --set train.log_every=10

BENCHMARK  := runs/benchmark
CANDIDATES ?= tiny-x4-gt tiny-x4 teacher:$(TEACHER)
SWINIR     ?=

ABLATION := runs/ablation
SEEDS    ?= 3

SOURCES := cli.py examples pipeline student teacher_cache tests

.DEFAULT_GOAL := help
.PHONY: help demo teacher-cache train-student evaluate benchmark ablate bench test test-slow test-gpu lint typecheck imports check format clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-15s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(STAMP)  ## both stages on sample photos with the embedded teacher, then a report (3 to 5 minutes on two cores)
	$(BIN)/dtkd teacher-cache sample $(DEMO)/cache --hold-out 4
	$(BIN)/dtkd train-student $(DEMO)/cache $(DEMO)/gt-only $(DEMO_TRAIN) --set loss.lambda_max=0
	$(BIN)/dtkd train-student $(DEMO)/cache $(DEMO)/dtkd --config recipes/realism.toml $(DEMO_TRAIN)
	$(BIN)/dtkd report $(DEMO)/cache $(DEMO)/report.html --gt-only $(DEMO)/gt-only --dtkd $(DEMO)/dtkd --overwrite

teacher-cache: $(STAMP)  ## stage one: CORPUS=~/photos CACHE=runs/cache TEACHER=embedded ARGS="--degradation bicubic"
	$(BIN)/dtkd teacher-cache "$(CORPUS)" "$(CACHE)" --teacher "$(TEACHER)" $(ARGS)

train-student: $(STAMP)  ## stage two: CACHE=runs/cache RUN=runs/student CONFIG=my.toml ARGS="--set train.steps=2000"
	$(BIN)/dtkd train-student "$(CACHE)" "$(RUN)" $(if $(CONFIG),--config "$(CONFIG)") $(ARGS)

evaluate: $(STAMP)  ## figures beside bicubic: CHECKPOINT=runs/student DATA=FOLDER (HR/ and LR/, one of them, or a cache)
	$(BIN)/dtkd evaluate "$(CHECKPOINT)" --data "$(DATA)" $(ARGS)

benchmark: $(STAMP)  ## the README's table: DATA="FOLDER FOLDER" [CANDIDATES="..."] [SWINIR="files"]; results in runs/benchmark
	$(BIN)/dtkd evaluate bicubic $(CANDIDATES) $(SWINIR) $(foreach folder,$(DATA),--data "$(folder)") \
	    --out $(BENCHMARK) --report $(BENCHMARK)/report.html --overwrite $(ARGS)

ablate: $(STAMP)  ## the published ablation (docs/method.md), hours: CORPUS=~/photos DATA=FOLDER (default: held-out photos) SEEDS=3
	$(BIN)/dtkd teacher-cache "$(CORPUS)" $(ABLATION)/cache --hold-out 4 --teacher "$(TEACHER)"
	$(BIN)/dtkd teacher-cache "$(CORPUS)" $(ABLATION)/cache-one-step --hold-out 4 --teacher "$(TEACHER)" --steps 1
	$(BIN)/dtkd ablate $(ABLATION)/cache $(ABLATION)/arms --grid recipes/ablation.toml --seeds $(SEEDS) \
	    --config recipes/ablation-training.toml --data "$(if $(filter-out $(CACHE),$(DATA)),$(DATA),$(ABLATION)/cache)" $(ARGS)

bench: $(STAMP)  ## the student's speed beside other programs': ARGS="--preset tiny --rounds 9"
	$(BIN)/dtkd bench student $(ARGS)

test: $(STAMP)  ## the test suite, as CI runs it
	$(BIN)/pytest

test-slow: $(STAMP)  ## the tests that take minutes, too
	$(BIN)/pytest -m "not gpu"

test-gpu: $(STAMP)  ## the tests that need an accelerator, against the CPU's results; skipped, visibly, where there is none
	$(BIN)/pytest -m gpu -rs

lint: $(STAMP)  ## ruff: style, and formatting
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)

typecheck: $(STAMP)  ## static types
	$(BIN)/basedpyright

imports: $(STAMP)  ## the direction of imports
	$(BIN)/lint-imports

check: lint typecheck imports test  ## everything that CI runs

format: $(STAMP)  ## rewrite the sources in the project's format
	$(BIN)/ruff check --fix $(SOURCES)
	$(BIN)/ruff format $(SOURCES)

clean:  ## remove the demo's results, caches of the tools and the environment; runs/ stays
	rm -rf $(DEMO) $(VENV) .pytest_cache .ruff_cache .import_linter_cache *.egg-info
	find $(SOURCES) -name __pycache__ -type d -exec rm -rf {} +

$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "No usable Python: 3.11, 3.12 or 3.13 with its venv module is needed, python3 here is" \
	  "$$(python3 --version 2>/dev/null || echo missing). Install one (Debian, Ubuntu: apt install python3 python3-venv)," \
	  "or name it: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@echo "making $(VENV) with $$($(PYTHON) --version): 2-3 minutes, about 3 GB"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	@touch $@
