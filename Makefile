# python3 and make are all that a fresh machine needs: every target makes the environment first.
VENV := .venv
BIN := $(VENV)/bin
SOURCES := $(shell find genprior operators priors solvers pretrained -type f -not -path '*/__pycache__/*')
SHELL := /bin/bash

# How much of the public interface has its types written down, as a user's type checker sees it.
define COMPLETE
import json, sys
score = json.load(sys.stdin)["typeCompleteness"]["completenessScore"]
print(f"type completeness {score:.1%}")
sys.exit(score < 0.95)
endef
export COMPLETE

.PHONY: demo test test-app cluster lint wheel bench figures docs notebooks clean

demo: build/installed
	$(BIN)/genprior demo --out demo --force

# One thread for each of the two workers: more only get in each other's way.
test: build/installed-dev
	OMP_NUM_THREADS=1 $(BIN)/pytest tests -n 2 --dist worksteal --durations=15

# The page in a browser: needs Debian's chromium.
test-app: build/installed-dev
	OMP_NUM_THREADS=1 $(BIN)/pytest tests/genprior/restoration/test_app_in_chromium.py -m browser

lint: build/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	mkdir -p build/types && cd build/types && PATH="$(abspath $(BIN)):$$PATH" \
		pyright --verifytypes genprior --ignoreexternal --outputjson | python -c "$$COMPLETE"

# Folders restored by several processes, and by a Ray cluster of this machine, with kills: minutes.
cluster: build/installed-dev
	OMP_NUM_THREADS=1 $(BIN)/pytest tests -m cluster -s

# What a user gets: the wheel and its dependencies alone, run where no checkout is at hand.
wheel: build/installed-dev
	rm -rf dist build/wheel
	$(BIN)/python -m build -q --wheel
	python3 -m venv build/wheel
	build/wheel/bin/pip install -q dist/*.whl
	cd "$$(mktemp -d)" && genprior="$(abspath build/wheel)/bin/genprior" && $$genprior --version && \
		$$genprior sample mnist-gaussian --number 4 --out samples.png && \
		$$genprior restore samples.png --simulate --task inpaint --mask random:.5 --channels 1 \
			--prior mnist-gaussian --fit crop --out results && ls results

bench: build/installed-dev
	$(BIN)/python benchmarks/truth.py

# Every picture and table of the docs. MNIST, CATS, MODELS, FASHION name folders, CHROMIUM the
# browser, as docs/make.py says; FULL=1 repeats the benchmarks too, hours of a core.
figures: build/installed-dev
	MNIST="$(MNIST)" CATS="$(CATS)" MODELS="$(MODELS)" FASHION="$(FASHION)" \
		CHROMIUM="$(CHROMIUM)" $(BIN)/python docs/make.py $(if $(FULL),--full)

# The site, build/site/index.html. It is made from a copy, as Sphinx writes beside what it reads.
docs: build/installed-docs
	rm -rf build/docs build/site
	cp -r docs build/docs
	$(BIN)/python -m sphinx -c docs/site -W --keep-going -n -q build/docs build/site
	@echo "open build/site/index.html"

# The tutorials as notebooks, run from top to bottom on two cores: a quarter of an hour at most.
notebooks: build/installed-docs
	$(BIN)/python docs/site/notebooks.py --run

# torch and torchvision must come from one index in one command, as the requirements of genprior.
$(VENV)/dependencies: pyproject.toml
	python3 -m venv $(VENV)
	$(BIN)/pip install -q --upgrade pip
	$(BIN)/pip install -q .
	touch $@

$(VENV)/dependencies-dev: $(VENV)/dependencies
	$(BIN)/pip install -q ".[dev]"
	touch $@

$(VENV)/dependencies-docs: $(VENV)/dependencies
	$(BIN)/pip install -q ".[docs]"
	touch $@

# A plain install, repeated when a source file changes. It leaves the package as it is installed in
# build/lib, where the type checker reads it.
build/installed: $(VENV)/dependencies $(SOURCES)
	rm -rf build
	$(BIN)/pip install -q --no-deps --force-reinstall .
	touch $@

build/installed-dev: $(VENV)/dependencies-dev build/installed
	touch $@

build/installed-docs: $(VENV)/dependencies-docs build/installed
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info demo
