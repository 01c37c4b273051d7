# The two commands: `make demo` and `make test`. Both make .venv and install what they need on first use.
PYTHON ?= python3
PRESET ?= digits
RESULTS ?= results
BIN := .venv/bin
PARITY := mamba-ssm==2.3.2.post1 einops==0.8.2
# Every worker imports torch: without cached bytecode each spends seconds on compiling it anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test lint format clean

demo: .venv/core
	$(BIN)/mvar run mixers layers parameters --preset $(PRESET) --results $(RESULTS)
	$(BIN)/mvar report --results $(RESULTS)

test: .venv/dev .venv/mamba-ssm
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pytest -n 2 -m "not faults"

lint: .venv/dev
	$(BIN)/ruff check .

format: .venv/dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# uv installs torch's gigabytes in half a minute, pip in two; where uv cannot be had, pip does.
define install
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "installing into .venv (half a minute to two)"
	@if $(BIN)/pip install -q --disable-pip-version-check uv >/dev/null 2>&1; then \
		$(BIN)/uv pip install -q --python $(BIN)/python -c constraints.txt -e "$(1)"; \
	else \
		$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt -e "$(1)"; \
	fi
	@touch $@
endef

.venv/core: pyproject.toml constraints.txt
	$(call install,.)

.venv/dev: pyproject.toml constraints.txt
	$(call install,.[dev])
	@touch .venv/core

# mamba-ssm's Python files, without its CUDA builds: a test runs its Triton kernel in an interpreter beside our scan.
# Where it cannot be had, that test is skipped and says so. Never cached: a kernel-less wheel must not serve a GPU.
.venv/mamba-ssm: export MAMBA_SKIP_CUDA_BUILD = TRUE
.venv/mamba-ssm: export MAMBA_FORCE_BUILD = TRUE
.venv/mamba-ssm: | .venv/dev
	-@if test -x $(BIN)/uv; then \
		$(BIN)/uv pip install -q --python $(BIN)/python --target $@ --no-deps --no-build-isolation --no-cache $(PARITY); \
	else \
		$(BIN)/pip install -q --target $@ --no-deps --no-build-isolation --no-cache-dir $(PARITY); \
	fi

clean:
	rm -rf .venv build dist *.egg-info
