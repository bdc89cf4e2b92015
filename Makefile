# make demo: train a GN Mask R-CNN from scratch on generated images and show its AP. make test: the tests.
# Both set up .venv first. Another place or Python: make demo VENV=/some/folder PYTHON=python3.12
VENV ?= .venv
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: demo test lint docs zoo install clean

demo: install
	@$(BIN)/python tools/train_net.py --config configs/quickstart_R18_FPN_gn_scratch.yaml SEED 1 \
		OUTPUT_DIR output/demo-$$(date +%Y%m%d-%H%M%S)

test: install
	@$(BIN)/python -m pytest

lint: install
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

docs: install
	@$(BIN)/sphinx-build -q -W --keep-going -b html docs docs/_build

zoo: install
	@$(BIN)/python tools/model_zoo.py table

install: $(INSTALLED)

$(INSTALLED): constraints.txt pyproject.toml setup.py packaging/labgym.txt packaging/labgym_bridge/pyproject.toml
	@VENV="$(VENV)" PYTHON="$(PYTHON)" sh packaging/install.sh
	@touch $@

clean:
	rm -rf $(VENV) build docs/_build *.egg-info
