# make demo: train a GN Mask R-CNN from scratch on generated images and show its AP.
# make test: the tests, in a few minutes. make test-all: also those that start several processes or run for longer.
# make faults: do each fault of docs/faults.md to gn_det and to stock detectron2, and write the table there.
# Each sets up .venv first. Another place or Python: make demo VENV=/some/folder PYTHON=python3.12
VENV ?= .venv
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
# Test processes at once, with one thread each; at most 8, as each takes about 1 GB.
JOBS ?= $(shell n=$$(nproc 2>/dev/null || echo 2); if [ $$n -gt 8 ]; then echo 8; else echo $$n; fi)
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadfile

TRITON ?= 3.2.0 3.3.1 3.4.0 3.5.1 3.6.0

.PHONY: demo test test-all faults lint docs kernels pages install clean

demo: install
	@$(BIN)/python tools/train_net.py --config configs/quickstart_R18_FPN_gn_scratch.yaml SEED 1 \
		OUTPUT_DIR output/demo-$$(date +%Y%m%d-%H%M%S)

test: install
	@$(PYTEST) -m "not slow"

test-all: install
	@$(PYTEST)

faults: install
	@PYTHONPATH=.:tests PYTHONWARNINGS=ignore OMP_NUM_THREADS=1 $(BIN)/python -m faults.table --jobs $(JOBS) \
		--page docs/faults.md

lint: install
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/lint-imports --no-cache
	@$(BIN)/mypy
	@.ci/words

docs: install
	@rm -rf docs/api # generated; pages of names that are gone would stay
	@$(BIN)/sphinx-build -q -W --keep-going -b html docs docs/_build

# Compile the Triton kernels for an A100 and an H100 with the given versions of Triton: make kernels TRITON="3.4.0 3.6.0"
kernels: install
	@BIN="$(BIN)" sh packaging/kernels.sh $(TRITON)

# The pages that are written from data: MODEL_ZOO.md and docs/config_keys.md.
pages: install
	@$(BIN)/python tools/model_zoo.py table
	@$(BIN)/python -m gn_det.config.page > docs/config_keys.md

install: $(INSTALLED)

$(INSTALLED): constraints.txt pyproject.toml setup.py packaging/labgym.txt packaging/labgym_bridge/pyproject.toml
	@VENV="$(VENV)" PYTHON="$(PYTHON)" sh packaging/install.sh
	@touch $@

clean:
	rm -rf $(VENV) build docs/_build docs/api *.egg-info
