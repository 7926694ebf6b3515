# Two commands that set everything up: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
PIP = $(VENV)/bin/python -m pip install --quiet --constraint constraints.txt

.PHONY: demo test slow lint docs licences clean

demo: $(VENV)/.demo
	$(VENV)/bin/walrus-hf demo --output demo-output --overwrite

# Two processes of one thread each: faster on two cores than one process of two threads.
test: $(VENV)/.test
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

slow: $(VENV)/.test
	$(VENV)/bin/python -m pytest -m slow

lint: $(VENV)/.test
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

# The documentation site, in site/.
docs: $(VENV)/.test
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --strict

# The licences of all dependencies, in THIRD_PARTY_LICENCES.md.
licences: $(VENV)/.test
	$(VENV)/bin/python .ci/licences.py

clean:
	rm -rf $(VENV) demo-output site

$(VENV)/.venv:
	$(PYTHON) -m venv $(VENV)
	touch $@

$(VENV)/.demo: $(VENV)/.venv pyproject.toml constraints.txt
	$(PIP) --editable '.[plot,sim]'
	touch $@

$(VENV)/.test: $(VENV)/.venv pyproject.toml constraints.txt
	$(PIP) --editable '.[dev,oracle]'
	touch $@
