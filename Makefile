# Everything runs in .venv, which each target makes and fills itself. A second run needs no network.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RESULTS_DIR ?= bench/results
# setuptools warns about every editable install with mapped packages: not the user's business
PIP := PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: demo test test-milvus lint bench engines gpu claim bundle bundle-lite clean

# What serving needs: no torch.
$(VENV)/.cpu: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(PIP) --upgrade "pip>=24"
	$(PIP) --editable ".[cpu]"
	touch $@

# What tests, training and export need besides.
$(VENV)/.dev: $(VENV)/.cpu
	$(PIP) "torch==2.13.0"
	$(PIP) --editable ".[dev]"
	touch $@

demo: $(VENV)/.cpu  ## render a catalogue, index it, search it, draw the result
	$(BIN)/tigerfg demo --out demo

test: $(VENV)/.dev  ## all tests that need no GPU
	$(BIN)/python -m pytest tests -n 2 --dist loadfile

test-milvus: $(VENV)/.dev  ## the tests of the Searcher against a Milvus server, which it installs
	$(BIN)/python tests/run_with_milvus.py .venv-milvus

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

bench: $(VENV)/.dev  ## CPU benchmarks, ten minutes
	RESULTS_DIR=$(RESULTS_DIR) $(BIN)/python -m pytest bench --benchmark-only

engines: $(VENV)/.dev  ## build every engine of tiny and base for sm 80, 89 and 120: times and sizes
	RESULTS_DIR=$(RESULTS_DIR) $(BIN)/python bench/build_engines.py

gpu:  ## on a machine with a GPU and its own torch: tests, compute-sanitizer, benchmarks (ten minutes)
	$(PYTHON) -m pip install --quiet --no-deps --no-build-isolation --editable .
	RESULTS_DIR=$(RESULTS_DIR) $(PYTHON) bench/gpu.py $(if $(STEPS),--steps $(STEPS))

PHOTOS ?= ../shared/data/grocery
SEEDS ?= 0 1 2
REAL ?=
claim: $(VENV)/.dev  ## the paper's claim: method, ablations, baselines, three seeds (hours; resumable)
	$(BIN)/tigerfg suite runs/suite --pairs 0 --eval 5000 --seed 7
	$(BIN)/python bench/claim.py --suite runs/suite --out runs/claim --seeds $(SEEDS) \
		$(if $(wildcard $(PHOTOS)),--photos $(PHOTOS)) $(if $(REAL),--real $(REAL)) \
		--results $(RESULTS_DIR)/claim

bundle: $(VENV)/.dev  ## train the shipped tiny model from nothing, export it (CPU: three hours)
	$(BIN)/tigerfg train --preset tiny --data $(PHOTOS) --out runs/tiny
	$(BIN)/tigerfg train --preset tiny --config bench/recipes/tiny_last.json --data $(PHOTOS) \
		--init runs/tiny/checkpoint --out runs/tiny-last
	$(BIN)/tigerfg-export --ckpt runs/tiny-last/checkpoint --out tigerfg/bundles/tiny --engine none

$(VENV)/.lite: $(VENV)/.dev
	$(PIP) --editable ".[lite]"
	touch $@

# lite takes the text encoder of the shipped tiny. Its model card and log tell of the last run only;
# those of the shipped bundle were joined by hand.
bundle-lite: $(VENV)/.lite  ## train the shipped lite model from the shipped tiny one (CPU: 100 minutes)
	$(BIN)/python bench/lite_start.py tiny runs/lite-start
	$(BIN)/tigerfg train --preset lite --config bench/recipes/lite.json --data $(PHOTOS) \
		--init runs/lite-start --out runs/lite
	$(BIN)/tigerfg train --preset lite --config bench/recipes/lite_last.json --data $(PHOTOS) \
		--init runs/lite/checkpoint --out runs/lite-last
	$(BIN)/tigerfg train --preset lite --config bench/recipes/lite_fine.json --data $(PHOTOS) \
		--init runs/lite-last/checkpoint --out runs/lite-fine
	$(BIN)/tigerfg-export --ckpt runs/lite-fine/checkpoint --out tigerfg/bundles/lite --engine none --fp16

clean:
	rm -rf $(VENV) .venv-milvus demo build .pytest_cache .ruff_cache
