# Each target is a line or two; `make` alone lists them. PYTHON, VENV and TIER can be given: make run TIER=smoke
PYTHON ?= python3
VENV ?= .venv
TIER ?= cpu
BIN = $(VENV)/bin
INSTALLED = $(VENV)/.installed
# tests run in a process for each core, so each of them gets one thread
SIDE_BY_SIDE = OMP_NUM_THREADS=1

help:
	@echo "make setup          a virtual environment in $(VENV) with everything"
	@echo "make lab            JupyterLab on lesson 1"
	@echo "make run            every lesson, headless, at TIER=$(TIER); a table at the end"
	@echo "make test           the whole test suite"
	@echo "make test-browser   the lessons in JupyterLab, by a Chromium that is on the path"
	@echo "make test-colab     the lessons with Colab's versions, in an environment of 5 GB that stays in build/colab"
	@echo "make test-gpu       what a GPU says in MINUTES=9: its tests, every lesson, speed, half precision, a recipe; in build/gpu"
	@echo "make test-nbgrader  a right, a half right and an empty submission through nbgrader"
	@echo "make lint           ruff over code and notebooks"
	@echo "make notebooks      run the lessons at tier cpu and store their outputs"
	@echo "make site           the lessons as web pages in build/site, to be read without a network"
	@echo "make slides         the lessons as reveal.js slides in build/slides; REVEAL=reveal.js takes a copy of it from there"

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --constraint constraints.txt --editable ".[lab,test]"
	touch $@

setup: $(INSTALLED)

lab: setup
	$(BIN)/jupyter lab --LabApp.default_url=/lab/tree/notebooks/01_supervised_baseline.ipynb

run: setup
	$(BIN)/python -m sslcourse run --tier $(TIER) --out runs/$(TIER)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/python -m sslcourse notebooks --check

test: lint
	$(SIDE_BY_SIDE) $(BIN)/python -m pytest -n auto --dist loadfile tests
	$(SIDE_BY_SIDE) SSLCOURSE_TIER=smoke SSLCOURSE_DATASET=toybox SSLCOURSE_HEADLESS=1 SSLCOURSE_RESULTS_DIR=build/nbval \
	$(BIN)/python -m pytest -n auto --dist loadfile --nbval-lax --nbval-current-env notebooks

test-browser: setup
	$(BIN)/python -m pip install --constraint constraints.txt --editable ".[lab,test,browser]"
	$(SIDE_BY_SIDE) $(BIN)/python -m pytest -m browser tests/browser

test-colab: setup
	$(BIN)/python tests/colab/run_lessons.py --environment build/colab

test-gpu: setup
	$(BIN)/python tests/gpu/fifteen_minutes.py --minutes $(or $(MINUTES),9) --out build/gpu

test-nbgrader: setup
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[lab,test,grade]"
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python -m pytest tests/course/test_nbgrader.py

notebooks: setup
	$(BIN)/python -m sslcourse notebooks --execute --tier cpu

$(VENV)/.site: $(INSTALLED)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[site]"
	touch $@

site: $(VENV)/.site
	$(BIN)/sphinx-build -q -W --keep-going -c docs -d build/doctrees notebooks build/site

slides: $(VENV)/.site
	$(BIN)/jupyter nbconvert --to slides --config docs/slides/nbconvert_config.py --output-dir build/slides $(if $(REVEAL),--reveal-prefix $(REVEAL)) notebooks/0*.ipynb

.PHONY: help setup lab run lint test test-browser test-colab test-gpu test-nbgrader notebooks site slides
