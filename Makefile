# What people type. Every target is one or two plain python lines; `make -n TARGET` shows them.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python

MODEL ?=
TASK ?=
DATA ?=
SEEDS ?=
# an empty override leaves the default of the target or of train.py
OPTIONS = --seed $(or $(SEEDS),0) $(if $(DATA),--data-dir $(DATA)) $(ARGS)

.PHONY: demo test lint dev pretrain-toy mrpc-lora mnli-lora e2e-lora e2e-lora-small baselines counts recipes

demo: $(VENV)/installed          ## both toy models before and after LoRA, offline, about two minutes
	$(RUN) -m toy.demo

test: $(VENV)/installed          ## the whole test suite
	$(RUN) -m pytest

lint: $(VENV)/installed-dev
	$(RUN) -m ruff check .

dev: $(VENV)/installed-dev       ## the libraries that tests, benchmarks and plots compare with

pretrain-toy: $(VENV)/installed-dev
	$(RUN) -m toy.pretrain

mrpc-lora: $(VENV)/installed     ## RoBERTa base on MRPC; the model and the data are downloaded on first use
	$(RUN) train.py --model $(or $(MODEL),roberta-base) --task $(or $(TASK),mrpc) $(OPTIONS)

mnli-lora: $(VENV)/installed
	$(RUN) train.py --model $(or $(MODEL),roberta-base) --task $(or $(TASK),mnli) $(OPTIONS)

e2e-lora: $(VENV)/installed      ## GPT-2 medium on the E2E NLG Challenge
	$(RUN) train.py --model $(or $(MODEL),gpt2-medium) --task $(or $(TASK),e2e) $(OPTIONS)

e2e-lora-small: $(VENV)/installed
	$(RUN) train.py --model $(or $(MODEL),gpt2) --task $(or $(TASK),e2e) $(OPTIONS)

baselines: $(VENV)/installed     ## every method on the toy tasks, 3 seeds; finished runs are kept
	$(RUN) -m experiments.methods --seeds $(or $(SEEDS),0 1 2) $(ARGS)

counts: $(VENV)/installed        ## parameters of every method: paper, formula, built model
	$(RUN) baselines.py

recipes: $(VENV)/installed       ## hyperparameters of every task: paper and authors' scripts
	$(RUN) recipes.py

$(VENV)/installed: requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

$(VENV)/installed-dev: $(VENV)/installed requirements-dev.txt
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@
