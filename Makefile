# Everything a developer or a newcomer runs. Needs make and Python 3.11 or newer; the rest is installed into .venv.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install -c constraints.txt
ARGS ?=
SECONDS ?= 180
BENCH ?= training decoding scaling against_transformers against_trl muon_adamw

.DEFAULT_GOAL := help
.PHONY: help demo test check format bench bench-serve fuzz gpu wheel clean

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-11s %s\n", $$1, $$2 }' Makefile

demo: $(VENV)/.installed ## from nothing to a judged reasoning model, in runs/demo (ARGS="key=value ..." changes the recipe)
	@$(BIN)/mull demo $(ARGS)

test: $(VENV)/.installed-dev ## the tests, offline (ARGS goes to pytest)
	$(BIN)/python -m pytest $(ARGS)

check: $(VENV)/.installed-dev ## lint, types, import layers
	$(BIN)/ruff check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports

format: $(VENV)/.installed-dev ## sort imports and mend what ruff can mend by itself
	$(BIN)/ruff check --fix .

bench: $(VENV)/.installed-bench ## speed on this machine, beside transformers and TRL too: BENCH=training ARGS=... runs one (all: an hour)
	@for each in $(BENCH); do echo "$$each:"; $(BIN)/python benchmarks/$$each.py $(ARGS) || exit; done

bench-serve: $(VENV)/.installed-bench ## serving beside transformers, llama.cpp and, with ARGS="--vllm PYTHON", vllm (half an hour)
	$(BIN)/python benchmarks/serving.py $(ARGS)

fuzz: $(VENV)/.installed-dev ## three minutes of mutated files for each reader of headers (SECONDS=... for longer)
	$(PIP) -e '.[fuzz]'
	@for each in gguf safetensors; do $(BIN)/python tests/fuzz/fuzz_$$each.py -max_total_time=$(SECONDS) || exit; done

gpu: $(VENV)/.installed-dev ## the tests that need a GPU, then the benchmarks on it
	@if $(BIN)/python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then \
		$(BIN)/python -m pytest -m gpu $(ARGS) && \
		$(BIN)/python benchmarks/training.py && \
		$(BIN)/python benchmarks/decoding.py; \
	else \
		echo "No GPU that torch can use here; nothing was run."; \
	fi

wheel: $(VENV)/.installed-dev ## build dist/mull-*.whl
	$(BIN)/python -m pip --disable-pip-version-check wheel --no-deps -w dist .

clean: ## remove the environment and what tools left behind; runs/ stays
	rm -rf $(VENV) dist build .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find src tests -name __pycache__ -prune -exec rm -rf {} +

# The stamps are newer than what they were made from, so nothing is installed twice.

$(VENV)/.made:
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "mull needs Python 3.11 or newer; name one with make PYTHON=...")'
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.installed: pyproject.toml constraints.txt | $(VENV)/.made
	$(PIP) -e '.[serve,eval,tensorboard]'
	@touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt | $(VENV)/.made
	$(PIP) -e '.[check]'
	@touch $@ $(VENV)/.installed

$(VENV)/.installed-bench: $(VENV)/.installed-dev
	$(PIP) -e '.[bench]'
	@touch $@
