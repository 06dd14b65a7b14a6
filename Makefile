# Two targets are all a reader needs: `make demo` and `make test`.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

export DVC_NO_ANALYTICS := 1
export DO_NOT_TRACK := 1
export PREFECT_SERVER_ANALYTICS_ENABLED := false
export RAY_USAGE_STATS_ENABLED := 0
export PATH := $(CURDIR)/$(BIN):$(PATH)
# Workers share the cores; threads inside them would only fight.
export OMP_NUM_THREADS ?= 1
export OPENBLAS_NUM_THREADS ?= 1
export MKL_NUM_THREADS ?= 1

.PHONY: demo test faults check install lock clean

demo: install
	dvc --wait-for-lock repro
	@dvc status
	@python -m pipelines.summary

test: check
	python -m pytest -q --numprocesses=2 --dist=loadfile --no-loadscope-reorder --durations=10

# Kills, full disks, damaged files, real servers: minutes; full disks need root.
faults: install
	python -m pytest -q -m faults

check: install
	ruff check .
	ruff format --check .
	mypy
	lint-imports

install: $(STAMP)

$(STAMP): requirements.lock pyproject.toml deploy/system-libraries.sh
	sh deploy/system-libraries.sh
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --disable-pip-version-check -q -r requirements.lock
	$(BIN)/pip install --disable-pip-version-check -q --no-deps --no-build-isolation -e .
	$(BIN)/python -m pipelines.kernels
	touch $(STAMP)

lock:
	rm -rf .work/lock && $(PYTHON) -m venv .work/lock
	.work/lock/bin/pip install -q -e '.[dev]'
	(echo '# Installed together from an empty environment on Python 3.11 (Linux, x86-64); refresh with `make lock`.'; \
	 .work/lock/bin/pip freeze --exclude-editable | sed 's/+cpu//') > requirements.lock

clean:
	rm -rf .work $(addprefix data/,models packed landmark_model landmarks registered unified rendered \
		recognizers checkpoints predictions evaluation reports truth raw/synthetic)
