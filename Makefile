# Everything needs only Python >= 3.11 and make; the virtual environment is made once, and again only when pyproject.toml changes.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
OUT ?= runs/iconshift

.PHONY: demo test check docs docs-test setup clean

demo: setup  ## fine-tune on the embedded benchmark, print the table, write the report
	$(BIN)/surefoot compare iconshift --out $(OUT)

test: $(VENV)/.docs  ## what CI runs: format, lint, types, tests, every block of the documents, the site
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	OMP_NUM_THREADS=1 $(BIN)/pytest -n auto
	OMP_NUM_THREADS=1 $(BIN)/pytest -q -n auto -m slow tests/test_doc_blocks.py tests/test_vanished.py
	$(BIN)/sphinx-build -W --keep-going -q -b html -c docs . build/site

check: setup  ## the fast loop
	$(BIN)/ruff check .
	$(BIN)/mypy
	OMP_NUM_THREADS=1 $(BIN)/pytest -q -x -n auto tests

docs: $(VENV)/.docs  ## the site, into build/site
	$(BIN)/sphinx-build -W --keep-going -q -b html -c docs . build/site
	@echo Open build/site/index.html

docs-test: setup  ## what the documents show, run on tiny data: some minutes
	OMP_NUM_THREADS=1 $(BIN)/pytest -q -n auto -m slow tests/test_doc_blocks.py

setup: $(VENV)/.ready

# torch and torchvision are installed together, in the pair that the tests run with; another pair may not import.
$(VENV)/.ready: pyproject.toml requirements.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $@

$(VENV)/.docs: $(VENV)/.ready
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[docs]'
	touch $@

clean:
	rm -rf $(VENV) build runs
