# SPDX-License-Identifier: Apache-2.0
PYTHON ?= python
COSTS := cpu-2core rtx3090-paper

.DEFAULT_GOAL := help
.PHONY: help install format lint types contracts test check train evaluate results clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: ## Install SpecKV editable, with everything that tests and checks need
	$(PYTHON) -m pip install -c .ci/constraints.txt -e ".[test,dev]"
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

check: lint types contracts test ## Run every check above, as CI does

train: ## Train PPO on the shipped traces
	$(PYTHON) train.py agent=ppo

evaluate: ## Evaluate controllers on the test prompts
	$(PYTHON) evaluate.py

results: $(COSTS:%=results-%) ## Train and compare everything on both cost tables, for README's figures

results-%:
	rm -rf runs/results-$*
	$(PYTHON) train.py agent=ppo cost=$* output=runs/results-$*/ppo
	$(PYTHON) train.py experiment=ppo_stopping cost=$* output=runs/results-$*/ppo-stopping
	$(PYTHON) evaluate.py experiment=zoo cost=$* output=runs/results-$*/zoo \
	  controllers=[runs/results-$*/ppo,runs/results-$*/ppo-stopping]
	cp runs/results-$*/zoo/results.json benchmarks/results/zoo-$*.json
	cp runs/results-$*/ppo/policy/policy.json runs/results-$*/ppo/policy/policy.npz speckv/assets/policies/$*/

clean: ## Remove build products and tool caches; runs stay
	rm -rf build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -not -path './.venv*' -prune -exec rm -rf {} +
