# Two commands on a fresh machine: `make demo` and `make test`. Both make .venv first.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
CASE   := tests/data/e2e/c_cardiac

.PHONY: demo test lint types contracts pytest test-slow test-lowest clean

demo: $(VENV)/demo.stamp
	mkdir -p demo
	$(BIN)/masksam-deploy export $(CASE)/checkpoint_final.pth -o demo/cardiac.masksam --force
	$(BIN)/masksam-deploy infer $(CASE)/c_cardiac_0000.nii.gz -b demo/cardiac.masksam \
	    -o demo/labels.nii.gz --overlay demo/overlay.png --report demo/report.json
	@echo
	@echo "A real heart MRI (Sunnybrook, CC0) through a MaskSAM with random weights: the labels are regions,"
	@echo "not anatomy. Label map: $(CURDIR)/demo/labels.nii.gz   Picture: $(CURDIR)/demo/overlay.png"

test: lint types contracts pytest

lint: $(VENV)/dev.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/dev.stamp
	$(BIN)/mypy

contracts: $(VENV)/dev.stamp
	$(BIN)/lint-imports

pytest: $(VENV)/dev.stamp
	$(BIN)/pytest

# Also the tests that take minutes or many gigabytes (a full-size ViT-B export).
test-slow: $(VENV)/dev.stamp
	$(BIN)/pytest --slow

# The runtime's tests on the oldest dependencies that pyproject.toml admits.
test-lowest:
	$(PYTHON) -m venv .venv-lowest
	.venv-lowest/bin/python -m pip install --quiet --disable-pip-version-check \
	    --constraint constraints-lowest.txt -e '.[cpu]' pytest hypothesis nibabel pydicom scipy scikit-image
	.venv-lowest/bin/pytest --ignore tests/export --ignore tests/walk

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/demo.stamp: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) -e '.[cpu,export]'
	touch $@

$(VENV)/dev.stamp: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) -e '.[cpu,export,dev]'
	touch $@ $(VENV)/demo.stamp

clean:
	rm -rf $(VENV) .venv-lowest demo dist
