# The two commands: `make demo` and `make test`. Both make .venv and install what they need on first use.
PYTHON ?= python3
PRESET ?= digits
RESULTS ?= results
BIN := .venv/bin
# Every worker imports torch: without cached bytecode each spends seconds on compiling it anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test lint format clean

demo: .venv/core
	$(BIN)/mvar run mixers layers parameters --preset $(PRESET) --results $(RESULTS)
	$(BIN)/mvar report --results $(RESULTS)

test: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pytest -n 2

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

clean:
	rm -rf .venv build dist *.egg-info
