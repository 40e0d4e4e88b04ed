# Two commands on a fresh machine: `make demo` and `make test`. Both make .venv first.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
MODEL  := models/masksam-tiny-lv
SAMPLE := examples/sunnybrook
RUNS   := runs
# Tests run in so many processes, each of up to 2 GB; all of a file in one, as they share what is slow to make.
WORKERS ?= 2

.PHONY: demo recipe-lv recipe-hippocampus bench check test lint types contracts fragments docs pytest test-slow \
    test-lowest fuzz docs-generated gallery clean

demo: $(VENV)/demo.stamp
	mkdir -p demo
	$(BIN)/masksam-deploy export $(MODEL)/checkpoint_final.pth -o demo/lv.masksam --force \
	    --validation $(SAMPLE)/scan --references $(SAMPLE)/reference.nii.gz --measured $(MODEL)/measured.json
	$(BIN)/masksam-deploy infer $(SAMPLE)/scan -b demo/lv.masksam \
	    -o demo/labels.nii.gz --overlay demo/overlay.png --report demo/report.json
	$(BIN)/masksam-deploy evaluate demo/labels.nii.gz $(SAMPLE)/reference.nii.gz --labels demo/lv.masksam --min-dice 0.85
	@echo
	@echo "A heart MRI that no training saw (Sunnybrook SCD0000501, CC0) through MaskSAM-Tiny-LV, a model for"
	@echo "demonstration, not for diagnosis. Label map: $(CURDIR)/demo/labels.nii.gz"
	@echo "Picture: $(CURDIR)/demo/overlay.png"

# Both recipes take one thread: on two CPU cores that is nearly as fast as two, and one seed gives one network.
# The left ventricle's cavity: make recipe-lv DATA=folder with scd_cardiac_png and scd_cardiac_dicom.
recipe-lv: $(VENV)/train.stamp
	test -n "$(DATA)" || { echo "set DATA to the folder with scd_cardiac_png and scd_cardiac_dicom" >&2; exit 2; }
	mkdir -p $(RUNS)
	$(BIN)/masksam-deploy prepare-sample-data "$(DATA)" --data sunnybrook -o $(RUNS)/lv-dataset --force
	$(BIN)/masksam-deploy train $(RUNS)/lv-dataset -o $(RUNS)/lv --network tiny --patch 4,80,80 --spacing 8,4,4 \
	    --queries 4 --fold all --mirror-axes none --epochs 55 --iterations 60 --batch 2 --warmup 200 \
	    --seed 0 --threads 1
	$(BIN)/masksam-deploy train $(RUNS)/lv-dataset -o $(RUNS)/lv-2 --checkpoint $(RUNS)/lv/checkpoint_release.pth \
	    --patch 4,80,80 --spacing 8,4,4 --fold all --mirror-axes none --shading 0.8 --learning-rate 4e-4 \
	    --epochs 16 --iterations 60 --batch 2 --warmup 60 --seed 0 --threads 1
	$(BIN)/masksam-deploy export $(RUNS)/lv-2/checkpoint_release.pth -o $(RUNS)/lv.masksam --force
	$(BIN)/python benchmarks/dice.py $(RUNS)/lv.masksam $(RUNS)/lv-dataset/imagesTs $(RUNS)/lv-dataset/labelsTs \
	    -o $(RUNS)/dice_lv_png.json
	$(BIN)/python benchmarks/dice.py $(RUNS)/lv.masksam "$(DATA)/scd_cardiac_dicom" $(RUNS)/lv-dataset/labelsDicom \
	    --only _ED -o $(RUNS)/dice_lv_dicom_ed.json

# Two classes in 3D: make recipe-hippocampus DATA=folder with hippocampus_msd.
recipe-hippocampus: $(VENV)/train.stamp
	test -n "$(DATA)" || { echo "set DATA to the folder with hippocampus_msd" >&2; exit 2; }
	mkdir -p $(RUNS)
	$(BIN)/masksam-deploy prepare-sample-data "$(DATA)" --data hippocampus -o $(RUNS)/hippocampus-dataset --force
	$(BIN)/masksam-deploy train $(RUNS)/hippocampus-dataset -o $(RUNS)/hippocampus --network tiny --patch 8,64,64 \
	    --spacing 1,1,1 --queries 5 --fold all --mirror-axes none --epochs 25 --iterations 80 --batch 2 --warmup 200 \
	    --seed 0 --threads 1
	$(BIN)/masksam-deploy export $(RUNS)/hippocampus/checkpoint_release.pth -o $(RUNS)/hippocampus.masksam --force
	$(BIN)/python benchmarks/dice.py $(RUNS)/hippocampus.masksam $(RUNS)/hippocampus-dataset/imagesTs \
	    $(RUNS)/hippocampus-dataset/labelsTs -o $(RUNS)/dice_hippocampus.json

# Every table of speeds, for this machine, into benchmarks/results: about two hours with nothing else running.
bench: $(VENV)/dev.stamp
	$(BIN)/python benchmarks/scan_path.py
	$(BIN)/python -m benchmarks.nightly --work $(RUNS)/bench --cases demo --int8
	$(BIN)/python -m benchmarks.nightly --work $(RUNS)/bench --cases acdc --no-scan --int8
	$(BIN)/python -m benchmarks.graph_rewrites
	$(BIN)/python -m benchmarks.encoder_rewrites
	$(BIN)/python -m benchmarks.adapter_formulations

# What takes seconds: before every commit (`.venv/bin/pre-commit install` runs it there).
check: lint types contracts fragments

test: check docs pytest

lint: $(VENV)/dev.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/dev.stamp
	$(BIN)/mypy

contracts: $(VENV)/dev.stamp
	$(BIN)/lint-imports

# Files in changelog.d with other names than its README says are errors.
fragments: $(VENV)/dev.stamp
	$(BIN)/towncrier build --draft --version unreleased >$(VENV)/fragments.txt

# The pages in docs/_build/index.html. Every warning is an error, so is a link between pages that leads nowhere.
docs: $(VENV)/docs.stamp
	$(BIN)/sphinx-build --fail-on-warning --keep-going --nitpicky --quiet docs docs/_build

# What is committed but made from the code and from benchmarks/results; a test fails where it is out of date.
docs-generated: $(VENV)/docs.stamp
	$(BIN)/python -m docs.generate

# The pictures of the pages, from the demo's scan: about a minute.
gallery: $(VENV)/dev.stamp
	$(BIN)/python -m docs.gallery

pytest: $(VENV)/dev.stamp
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder

# Also the tests that take minutes or many gigabytes (a full-size ViT-B export).
test-slow: $(VENV)/dev.stamp
	$(BIN)/pytest --slow

# Damaged and hostile scans, checkpoints and bundles: ten thousand, from one seed, seven minutes on two cores.
COUNT ?= 10000
SEED  ?= 1
fuzz: $(VENV)/dev.stamp
	$(BIN)/python -m tests.fuzz.run --count $(COUNT) --seed $(SEED) -o benchmarks/results/fuzz.json

# The runtime's tests on the oldest dependencies that pyproject.toml admits.
test-lowest:
	$(PYTHON) -m venv .venv-lowest
	.venv-lowest/bin/python -m pip install --quiet --disable-pip-version-check \
	    --constraint constraints-lowest.txt -e '.[cpu,evaluate]' pytest hypothesis nibabel pydicom scipy scikit-image
	.venv-lowest/bin/pytest --ignore tests/export --ignore tests/training --ignore tests/kernels --ignore tests/walk \
	    --ignore tests/docs

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/demo.stamp: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) -e '.[cpu,export]'
	touch $@

$(VENV)/train.stamp: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) -e '.[cpu,export,train]'
	touch $@ $(VENV)/demo.stamp

$(VENV)/dev.stamp: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) -e '.[cpu,export,train,evaluate,kernels,rtx,docs,dev]'
	touch $@ $(VENV)/demo.stamp $(VENV)/train.stamp $(VENV)/docs.stamp

$(VENV)/docs.stamp: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) -e '.[docs]'
	touch $@

clean:
	rm -rf $(VENV) .venv-lowest demo dist docs/_build
