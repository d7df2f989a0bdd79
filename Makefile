# Everything sets itself up: `make demo` on a fresh machine is one command.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
TORCH ?= torch==2.13.0
WORKERS ?= auto
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# TensorFlow is large and only converts: it has an environment of its own.
TF_VENV := .venv-tensorflow
TF_BIN := $(TF_VENV)/bin
TF_READY := $(TF_VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help install demo demo-keras test test-tensorflow check mutants format docs pictures bench system clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST)

# torch goes first and alone, so that nothing else chooses its build (CPU or CUDA) for it.
$(READY): pyproject.toml constraints.txt
	@test -x $(BIN)/python || "$(PYTHON)" -m venv $(VENV)
	$(BIN)/python -m pip install -q -c constraints.txt "$(TORCH)"
	$(BIN)/python -m pip install -q -c constraints.txt -e ".[dev]"
	@touch $@

install: $(READY) ## create .venv with everything a developer needs, at the versions of constraints.txt

demo: $(READY) ## tune the digits network on three backends; leaves out/demo with the model and report.html
	$(BIN)/python -m examples.demo

$(TF_READY): pyproject.toml constraints.txt
	@test -x $(TF_BIN)/python || "$(PYTHON)" -m venv $(TF_VENV)
	$(TF_BIN)/python -m pip install -q -c constraints.txt -e ".[tensorflow,sklearn]" onnx pytest hypothesis
	@touch $@

demo-keras: $(TF_READY) ## train a Keras network and tune it for LiteRT, in .venv-tensorflow; leaves out/keras
	$(TF_BIN)/python -m examples.tune_keras

# A worker for each core, each with one thread. They begin at far ends, so that tests that share a
# module's fixtures mostly meet in one worker.
test: $(READY) ## run all tests; WORKERS=0 runs them in one process
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(WORKERS) --dist worksteal
	@$(BIN)/python -c "import tensorflow" 2>/dev/null || echo "left out, for TensorFlow is not in $(VENV): tests/adapters/litert/test_tensorflow.py; make test-tensorflow runs them"

test-tensorflow: $(TF_READY) ## run the tests of models of TensorFlow and Keras, in .venv-tensorflow
	OMP_NUM_THREADS=1 $(TF_BIN)/python -m pytest -q tests/adapters/litert/test_tensorflow.py tests/adapters/litert/test_conversion.py

check: $(READY) ## ruff, mypy (strict), the import contracts and the house rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy -p octavo
	$(BIN)/lint-imports --no-cache
	$(BIN)/python -m tests.house

mutants: $(READY) ## change the methods' code in thousands of ways and see whether a test notices; takes hours
	$(BIN)/python -m scripts.mutants

format: $(READY) ## rewrite the sources in the house style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(READY) ## build the site into out/site; every warning is an error, and no network is needed
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

pictures: $(READY) ## run the demo and draw the README's pictures anew: its table and its report
	$(BIN)/python -m scripts.pictures

bench: $(READY) ## run every benchmark; each prints its figures beside the bars
	@for file in benchmarks/[!_]*.py; do module=$${file%.py}; echo "== $$module"; $(BIN)/python -m "$$(echo "$$module" | tr / .)" || exit 1; done

system: ## install Chromium and PostgreSQL, which some tests use, where apt is at hand
	@missing=""; \
	command -v chromium chromium-browser google-chrome >/dev/null 2>&1 || missing="chromium"; \
	command -v initdb >/dev/null 2>&1 || ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 || missing="$$missing postgresql"; \
	if [ -z "$$missing" ]; then :; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then \
	  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing >/dev/null; \
	else echo "not here, and apt-get is not at hand: $$missing; the tests that use it will be skipped"; fi

clean: ## remove what can be made again
	rm -rf $(VENV) $(TF_VENV) out dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
