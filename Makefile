# `make` alone lists the targets.
# The first Python that is there and runs: a version manager's shim may be there and not run.
PYTHON ?= $(shell for v in 3.11 3.12 3.13; do python$$v -c "" 2>/dev/null && { echo python$$v; exit; }; done; echo python3)
VENV ?= .venv
BIN := $(VENV)/bin
RUNS := $(VENV)/.runs
GENERATES := $(VENV)/.generates
READY := $(VENV)/.ready
REPOSITORY ?= model_repository
# Compiled modules are kept, whatever the environment says: without them every process compiles its own for seconds.
unexport PYTHONDONTWRITEBYTECODE
MODELS ?= embed intent sentiment ner
# Those of them that generate text: only they need the engine for it.
GENERATING := $(filter $(MODELS),$(notdir $(patsubst %/recipe.yaml,%,$(shell grep -ls '^task: text-generation' pipeline/recipes/*/recipe.yaml))))

# torch and the embedded Triton are large; what the network gives slowly should not end the set-up.
# What is never imported need not be compiled: Python compiles the rest at first use.
INSTALL := $(BIN)/python -m pip --disable-pip-version-check --timeout 120 install --no-compile --progress-bar on -c constraints.txt

.DEFAULT_GOAL := help
BENCHES := bench bench-assistant bench-cache bench-eager bench-exits bench-generate bench-generate-cuda bench-lookup \
  bench-packing bench-padding bench-routing bench-tune bench-weights
.PHONY: help setup serve models test test-slow check format protos drift $(BENCHES) demo clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'

setup: $(READY) ## make the virtual environment with all pinned dependencies

$(RUNS): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(not (3, 11) <= v < (3, 14) and f"Millis needs Python 3.11, 3.12 or 3.13, {sys.executable} is {v[0]}.{v[1]}; set PYTHON=")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(INSTALL) -e '.[pipeline]'
	@touch $@

$(GENERATES): $(RUNS)
	$(INSTALL) -e '.[generation-build]'
	@touch $@

$(READY): $(RUNS)
	$(INSTALL) -e '.[dev]'
	@touch $@ $(GENERATES)

serve: models ## build the default models if they are missing, then serve on 127.0.0.1:50051
	@# gRPC's handlers for a fork are for children that go on using it; ours becomes Triton.
	@GRPC_ENABLE_FORK_SUPPORT=false exec $(BIN)/millis serve --model-repository $(REPOSITORY)

models: $(RUNS) $(if $(GENERATING),$(GENERATES)) ## build the default models that are missing
	@missing=""; for model in $(MODELS); do \
	  grep -qs "\"model\": \"$$model\"" $(REPOSITORY)/$$model-*/*/manifest.json \
	    || missing="$$missing pipeline/recipes/$$model/recipe.yaml"; done; \
	test -z "$$missing" || exec $(BIN)/millis build $$missing --repository $(REPOSITORY)

test: $(READY) ## run the tests
	$(BIN)/python -m pytest

test-slow: $(READY) ## run the tests that train or measure for minutes
	$(BIN)/python -m pytest -m slow

check: $(READY) drift ## what must be green before a commit: format, lint, types, stubs, dead code, tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/vulture
	$(BIN)/buf lint protos
	$(BIN)/python -m pytest

format: $(READY) ## format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

protos: $(READY) ## generate the stubs from protos/ into client/millis/v1
	$(BIN)/python protos/generate.py client

drift: $(READY) ## fail when the committed stubs differ from the protos
	@rm -rf build/stubs && mkdir -p build/stubs
	@$(BIN)/python protos/generate.py build/stubs
	@diff -r -x __pycache__ -x __init__.py build/stubs/millis/v1 client/millis/v1 && echo "stubs match the protos"

bench: models ## measure engine, Triton, gateway and SDK side by side and print a table
	$(BIN)/python -m benchmarks.overhead --repository $(REPOSITORY)

bench-routing: $(RUNS) ## measure routing by deadline under load, against the same service pinned to the best variant
	@ls -d $(REPOSITORY)/intent-family-*/ >/dev/null 2>&1 || $(BIN)/millis build benchmarks/recipes/intent-family.yaml --repository $(REPOSITORY)
	$(BIN)/python -m benchmarks.routing --repository $(REPOSITORY) --model intent-family

bench-tune: models ## search a faster configuration for `intent` and more throughput for `sentiment`; nothing is written
	$(BIN)/millis tune intent --repository $(REPOSITORY) --texts pipeline/recipes/intent/test.csv --objective latency \
	  --budget-seconds 90 --phase-seconds 0.7 --rounds 6
	$(BIN)/millis tune sentiment --repository $(REPOSITORY) --texts pipeline/recipes/sentiment/test.csv \
	  --objective throughput --budget-seconds 150 --phase-seconds 1

# Of a public data set SET, whose folder is in DATA: the recipe trains its model, which is kept, and SET-compress.yaml or
# SET-exits.yaml makes its variants.
SET ?= banking77
KEPT := .millis/checkpoints
of_recipe = $(shell sed -n 's/^$(2): *//p' benchmarks/recipes/$(SET)-$(1).yaml)
define build_family
	@test -d "$(DATA)/$(SET)" || { echo "make: DATA=FOLDER must name the folder that holds $(SET)/"; exit 2; }
	@test -d $(KEPT)/$(SET) || $(BIN)/millis build benchmarks/recipes/$(SET).yaml --data-dir $(DATA) --keep $(KEPT) --repository $(REPOSITORY)
	@ls -d $(REPOSITORY)/$(SET)-$(1)-*/ >/dev/null 2>&1 || $(BIN)/millis build benchmarks/recipes/$(SET)-$(1).yaml --data-dir $(DATA) \
	  --teacher $(KEPT)/$(SET) --keep $(KEPT) --repository $(REPOSITORY)
endef

bench-eager: $(READY) ## measure a public set's variants against PyTorch behind a plain server (SET=banking77, DATA=its folder)
	$(call build_family,compress)
	$(BIN)/python -m benchmarks.eager --checkpoint $(KEPT)/$(SET) --repository $(REPOSITORY) --model $(SET)-compress \
	  --texts $(DATA)/$(call of_recipe,compress,test)

bench-exits: $(READY) ## measure a public set's variant with early exits against the one without (SET=banking77, DATA=its folder)
	$(call build_family,exits)
	$(BIN)/python -m benchmarks.exits --repository $(REPOSITORY) --model $(SET)-exits --plain int8 --exits exits-int8 \
	  --texts $(DATA)/$(call of_recipe,exits,test) --label-column $(call of_recipe,exits,label_column)

bench-generate: $(READY) ## measure what the service adds to a generation (SHAPE=0.5b or 15m, random weights)
	$(BIN)/python -m benchmarks.generate --shape $(or $(SHAPE),0.5b)

bench-generate-cuda: $(READY) ## the same on a CUDA device, a 7B shape in bfloat16 (needs torch with CUDA in the environment)
	$(BIN)/python -m benchmarks.generate --shape $(or $(SHAPE),7b) --engine transformers --device cuda --callers 1 8 64

bench-weights: $(READY) ## time a decoder's step with each way of storing weights (SHAPE=0.5b or 15m, random weights)
	$(BIN)/python -m benchmarks.weights --shape $(or $(SHAPE),0.5b)

bench-lookup: $(READY) ## measure prompt lookup on grounded answers of the model `assistant`
	@ls -d $(REPOSITORY)/assistant-*/ >/dev/null 2>&1 || $(MAKE) models MODELS=assistant
	$(BIN)/python -m benchmarks.lookup --repository $(REPOSITORY)

bench-assistant: $(READY) ## count the test questions that the model `assistant` answers rightly
	@ls -d $(REPOSITORY)/assistant-*/ >/dev/null 2>&1 || $(MAKE) models MODELS=assistant
	$(BIN)/python -m benchmarks.assistant --repository $(REPOSITORY)

bench-padding: models ## measure mixed lengths grouped and padded to the longest, through Triton
	$(BIN)/python -m benchmarks.padding --repository $(REPOSITORY)

bench-packing: $(READY) ## measure micro-batches by length against packed sequences, on the bare engine
	$(BIN)/python -m benchmarks.packing

bench-cache: models ## measure a cache hit beside an empty call and a call past the cache
	$(BIN)/python -m benchmarks.cache --repository $(REPOSITORY)

demo: $(RUNS) ## ask a running gateway a few questions
	$(BIN)/python examples/quickstart.py

clean: ## remove the environment, built models and caches
	rm -rf $(VENV) build .millis .pytest_cache .mypy_cache .ruff_cache $(REPOSITORY)/*-*/ $(REPOSITORY)/.retired
