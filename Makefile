# SPDX-License-Identifier: Apache-2.0
PYTHON ?= python
COSTS := cpu-2core rtx3090-paper
WEIGHTS ?= $(or $(SPECKV_WEIGHTS),$(wildcard $(HOME)/.cache/speckv/weights))
MINUTES ?= 30

.DEFAULT_GOAL := help
.PHONY: help install format lint types contracts test test-slow check docs docs-check train evaluate results results-policies results-t1 results-pages paper study regret ablations gpu soak integrations clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: ## Install SpecKV editable, with everything that tests and checks need
	$(PYTHON) -m pip install -c .ci/constraints.txt -e ".[test,dev,docs]"
	pre-commit install

format: ## Rewrite the code in the house format and mend what ruff can mend
	ruff format .
	ruff check --fix .

lint: ## Check format and lint rules, changing nothing
	ruff format --check .
	ruff check .

types: ## Check types, strictly
	mypy

contracts: ## Check which room may import which
	lint-imports

test: ## Run the tests; those needing weights or a GPU skip themselves without
	pytest

test-slow: ## Run the tests that take more than a few seconds each
	pytest -m slow

check: lint types contracts test ## Run every check above, as CI does

docs: ## Serve the docs as a site on localhost, rebuilt as pages change
	NO_MKDOCS_2_WARNING=1 mkdocs serve -f .ci/mkdocs.yml

docs-check: ## Build the docs with every link checked, and check every command and code block
	NO_MKDOCS_2_WARNING=1 mkdocs build --quiet --strict -f .ci/mkdocs.yml
	$(PYTHON) -m benchmarks.pages --check
	$(PYTHON) -m benchmarks.docs_check

train: ## Train PPO on the shipped traces
	$(PYTHON) train.py agent=ppo

evaluate: ## Evaluate controllers on the test prompts
	$(PYTHON) evaluate.py

results: $(COSTS:%=results-%) results-policies results-t1 study regret ablations results-pages ## Train, compare and study everything: all figures of README and docs

results-pages: ## Write the tables and the picture of README and docs from the committed results
	$(PYTHON) -m benchmarks.pages
	$(PYTHON) -m benchmarks.readme_figure

# $(1): name of the result; $(2): what is overridden
define compare
	rm -rf runs/results-$(1)
	$(PYTHON) train.py agent=ppo $(2) output=runs/results-$(1)/ppo
	$(PYTHON) train.py experiment=ppo_stopping $(2) output=runs/results-$(1)/ppo-stopping
	$(PYTHON) evaluate.py experiment=zoo $(2) output=runs/results-$(1)/zoo \
	  controllers=[runs/results-$(1)/ppo,runs/results-$(1)/ppo-stopping]
	cp runs/results-$(1)/zoo/results.json benchmarks/results/zoo-$(1).json
endef

results-policies: ## Fit the policies that come with SpecKV: supervised, token by token, for each cost table
	$(PYTHON) -m benchmarks.shipped_policies

results-t1:
	$(call compare,t1,data=qwen2.5-coder-t1 cost=cpu-2core)

results-%:
	$(call compare,$*,cost=$*)
	cp runs/results-$*/ppo/policy.speckv/* speckv/assets/policies/$*-ppo.speckv/

paper: ## Recompute the SpecKV paper from its released files (paper.folder=FOLDER)
	$(PYTHON) evaluate.py experiment=speckv_paper
	cp runs/speckv-paper/results.json benchmarks/results/speckv-paper.json

study: $(COSTS:%=study-%) ## Compare rewards, discounts, granularities and algorithms, and draw learning curves
	$(PYTHON) -m benchmarks.rl_study --learning-curves --cost rtx3090-paper --steps 1000000 --out runs/learning-curves-rtx3090-paper.json
	for kind in json png; do cp runs/learning-curves-rtx3090-paper.$$kind benchmarks/results/; done

study-%:
	$(PYTHON) -m benchmarks.rl_study --cost $* --out runs/rl-study-$*.json
	cp runs/rl-study-$*.json benchmarks/results/

regret:
	$(PYTHON) -m benchmarks.regret_curves

STUDIES := $(patsubst configs/experiment/%.yaml,%,$(wildcard configs/experiment/ablation/*.yaml configs/experiment/generalisation/*.yaml))

ablations: $(STUDIES:%=study/%) ## Run every ablation and every study of generalisation

# $*: such as ablation/reward, whose folder is runs/ablation-reward
study/%:
	$(PYTHON) train.py experiment=$*
	mkdir -p benchmarks/results/studies
	for kind in json png; do cp runs/$(subst _,-,$(subst /,-,$*))/study.$$kind benchmarks/results/studies/$(subst _,-,$(subst /,-,$*)).$$kind; done

gpu: ## Measure everything that wants a GPU, in MINUTES=20 at most (WEIGHTS=DIR, STAGES="lossless ...")
	$(PYTHON) -m benchmarks.gpu $(if $(WEIGHTS),--weights $(WEIGHTS)) $(if $(STAGES),--stages $(STAGES)) \
	  $(if $(filter command environment,$(origin MINUTES)),--minutes $(MINUTES))

soak: ## Decode live for MINUTES=30 under random policies, looking for other text and growing memory
	$(PYTHON) -m benchmarks.soak --minutes $(MINUTES) --out runs/soak.json

integrations: ## Run policies inside the real libraries, each in a fresh environment, one after the other
	.ci/all_integrations

integrations-%:
	.ci/integrations/$*

clean: ## Remove build products and tool caches; runs stay
	rm -rf build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -not -path './.venv*' -prune -exec rm -rf {} +
