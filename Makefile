PYTHON ?= python3
BIN := .venv/bin
export OMP_NUM_THREADS ?= 2
export OMP_WAIT_POLICY ?= PASSIVE

quickstart: .venv/quickstart        ## the whole path on this machine, then a chat page at http://127.0.0.1:8000
	$(BIN)/qwq quickstart $(ARGS)

test: .venv/dev                     ## every test, under 15 minutes on 2 cores
	$(BIN)/python -m pytest $(ARGS)

lint: .venv/dev
	$(BIN)/ruff check . && $(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	@find qwq -name '*.py' | xargs wc -l | sort -n | awk '$$2 == "total" {print; next} {split($$2, p, "/"); n[p[3] == "" ? p[2] : p[2] "/"] += $$1} END {for (r in n) print n[r], r}'

bench: .venv/dev                    ## every measurement that README.md and docs/ quote
	$(BIN)/qwq bench train && $(BIN)/qwq bench decode

# torch first and alone: its exact pin is what keeps gigabytes of accelerator libraries off a laptop.
.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/quickstart: .venv/bin/python pyproject.toml constraints.txt
	$(BIN)/pip install -q -c constraints.txt -e .
	touch $@

.venv/dev: .venv/bin/python pyproject.toml constraints.txt
	$(BIN)/pip install -q -c constraints.txt -e '.[dev]'
	touch $@ .venv/quickstart

.PHONY: quickstart test lint bench
