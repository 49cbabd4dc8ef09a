# `make book` and `make test` set everything up by themselves; the second call reuses the environment.
#   PYTHON       the interpreter the environment is made from (3.10 or newer)
#   VENV         where the environment lies
#   TORCH_INDEX  a package index with another build of torch (a CPU build, say); empty = the default index
PYTHON      ?= python3
VENV        ?= .venv
OLDEST      ?= .venv-oldest
TORCH_INDEX ?=

BIN    := $(abspath $(VENV))/bin
READY  := $(VENV)/.ready
NBVAL  := --nbval-lax --nbval-current-env --nbval-cell-timeout=600

.PHONY: help setup book test quick test-oldest notebooks notebook sync results live address offline links colab clean

# Notebooks run on the built-in data with their own defaults, whatever the caller's shell says.
unexport UAD_DATASET UAD_CATEGORY UAD_PROFILE

help:
	@echo "make setup      set up, and nothing else: enough for the command uad"
	@echo "make book       set up, run the notebooks that are out of date, build the book in _build/html"
	@echo "make test       set up, run all tests, the notebooks among them"
	@echo "make quick      the tests without the notebooks and the book's build"
	@echo "make notebooks  run every notebook again and store its outputs"
	@echo "make notebook NAME=01_hfr   run this one"
	@echo "make test-oldest            the quick tests with the oldest versions that are promised, in $(OLDEST)"
	@echo "make sync       bring the .ipynb files up to date with the .py files beside them (runs nothing)"
	@echo "make results    renew the tables of methods and of results in README.md"
	@echo "make live       renew the explorer's data and the drawing page's detectors, where the code that made them changed"
	@echo "make address    carry the repository's address from _config.yml to every file that shows it"
	@echo "make offline    the built book as one zip and one PDF beside its pages (needs Chromium or Chrome)"
	@echo "make links      ask every link of the book and every address of data whether it still answers"
	@echo "make colab      run every notebook as Colab does, in an environment that has little more than torch"
	@echo "make clean      remove what was built (the environment in $(VENV) stays)"
	@echo "Variables: PYTHON=$(PYTHON)  VENV=$(VENV)  TORCH_INDEX=$(TORCH_INDEX)"

setup: $(READY)

$(READY): pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "no interpreter $(PYTHON): choose one with \`make PYTHON=python3.12 ...\`" >&2; exit 1; }
	@$(PYTHON) tools/check_python.py
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) -e ".[book,test,export,glad]"
	@touch $@

book: $(READY)
	$(BIN)/python tools/notebooks.py run
	$(BIN)/jupyter-book build . -W -n --keep-going
	@echo "The book is ready: _build/html/index.html"

test: $(READY)
	$(BIN)/ruff check
	$(BIN)/python -m pytest $(NBVAL) tests notebooks

quick: $(READY)
	$(BIN)/ruff check
	$(BIN)/python -m pytest -m "not book and not slow" tests

test-oldest: $(OLDEST)/.ready
	$(abspath $(OLDEST))/bin/python -m pytest -m "not book and not slow" tests

$(OLDEST)/.ready: pyproject.toml oldest.txt
	$(PYTHON) -m venv $(OLDEST)
	$(abspath $(OLDEST))/bin/python -m pip install --disable-pip-version-check $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) -c oldest.txt -e ".[test,glad]"
	@touch $@

notebooks: $(READY)
	$(BIN)/python tools/notebooks.py run --all

notebook: $(READY)
	$(BIN)/python tools/notebooks.py run $(NAME)

sync: $(READY)
	$(BIN)/jupytext --sync notebooks/*.py

results: $(READY)
	$(BIN)/python tools/results.py

live: $(READY)
	$(BIN)/python tools/explorer.py make
	$(BIN)/python tools/drawing.py

address: $(READY)
	$(BIN)/python tools/address.py

offline: $(READY)
	$(BIN)/python tools/offline.py

links: $(READY)
	$(BIN)/jupyter-book build . --builder linkcheck
	$(BIN)/python tools/data_addresses.py

colab: $(READY)
	$(BIN)/python tools/colab.py

clean:
	rm -rf _build build *.egg-info .pytest_cache .hypothesis
	find . -name __pycache__ -not -path "./$(VENV)/*" -prune -exec rm -rf {} +
