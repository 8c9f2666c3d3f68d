# Every target does its own set-up: a machine needs Python 3.11, make and a package index.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV   ?= .venv
BIN    := $(VENV)/bin
STUDY  ?= configs/study/demo.yaml
DATA   ?=
SITES  ?= runs/sites
VERSION = $(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)

.PHONY: help install demo images wheel test test-quick lint docs schemas check bench lock clean

help: ## show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

install: $(VENV)/.installed ## make the virtual environment, exactly as requirements.lock says

# uv checks every download against the lock's hashes; pip alone would ignore them in a constraint.
# Compiled once here: a federation starts dozens of Python processes, each would compile again.
$(VENV)/.installed: requirements.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==0.11.33
	$(BIN)/uv pip install --python $(BIN)/python --compile-bytecode --constraint requirements.lock --editable '.[server,trainer,onnx,explain,tracking,notify,deploy,dev,docs]'
	@touch $@

demo: install ## a federation on this machine; DATA=DIR takes your images, STUDY=FILE another study
	$(BIN)/consilium-site simulate $(if $(DATA),--data '$(DATA)') --out $(SITES) --threads 1
	$(BIN)/consilium-server simulate $(STUDY) --sites $(SITES) --adopt

images: ## build the container images, also under the version that start-up kits name
	for target in server gateway trainer; do docker build --file Dockerfile.gpu --target $$target \
	  --tag consilium-$$target --tag consilium-$$target:$(VERSION) . || exit 1; done

# Without build/ and *.egg-info of an earlier build: setuptools would put files into the wheel that are gone.
wheel: install ## one wheel in dist/, with start-up kit, example settings and dashboards in it
	rm -rf build *.egg-info
	$(BIN)/uv build --wheel --quiet --out-dir dist --build-constraints requirements.lock --require-hashes
	rm -rf build *.egg-info
	cp requirements.lock dist/
	@ls dist/*-$(VERSION)-*.whl

# Three processes on two cores: whole federations often wait, for a line, a deadline or a process that starts.
test: install ## every test this machine can run
	$(BIN)/pytest -n 3 --dist loadfile --no-loadscope-reorder

test-quick: install ## tests of milliseconds: no federation of real processes, no container, no large encoder
	$(BIN)/pytest -n 3 --dist loadfile --no-loadscope-reorder -m 'not slow and not docker'

lint: install ## ruff, mypy --strict, and who may import whom
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

# CI sets RUN to off: its tests run the tutorials, and once is enough.
docs: install ## build the documentation, with the tutorials run, into docs/_build; warnings are errors
	$(BIN)/python -m sphinx -W --keep-going -q -D nb_execution_mode=$(or $(RUN),cache) -b html docs docs/_build
	@echo docs/_build/index.html

schemas: install ## write the JSON Schemas of the YAML files into configs/schema
	$(BIN)/python -m docs._generate.schemas

check: lint docs test ## what CI runs

bench: install ## measure, by hand: see benchmarks/
	$(BIN)/python -m benchmarks

lock: ## bring requirements.lock up to date with pyproject.toml
	$(BIN)/uv pip compile pyproject.toml --all-extras --universal --python-version 3.11 --generate-hashes \
	  --no-emit-index-url --no-header --no-annotate --quiet --output-file requirements.lock

clean: ## remove the environment and every cache; runs are kept
	rm -rf $(VENV) docs/_build docs/jupyter_execute .mypy_cache .pytest_cache .ruff_cache .hypothesis
