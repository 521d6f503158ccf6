# Every target sets up what it needs in .venv, on a fresh machine too; `make gpu` alone installs nothing.
PYTHON ?= python3
OUT ?= out
# Of the results' file: bench/results/$(MACHINE).json
MACHINE ?= cpu
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
INSTALL := $(PIP) install --quiet -c constraints.txt
# The oldest triton that is supported; kernels must compile well on it too.
TRITON_MIN := $(abspath $(VENV)/triton-3.6.0)
PYTEST := $(BIN)/python -m pytest -q -n 2 --dist worksteal

.PHONY: demo test test-all lint format bench bench-record gate gpu gpu-again browser clean

demo: $(VENV)/core
	$(BIN)/fastgen sample zoo:ddpm-mnist --count 64 --labels 0-9 --seed 0 --out demo.png --overwrite

test: $(VENV)/dev
	$(PYTEST) -m "not slow and not gpu"

test-all: $(VENV)/dev $(TRITON_MIN)
	FASTGEN_TRITON_MIN=$(TRITON_MIN) $(PYTEST) -m "not gpu" --durations=25

lint: $(VENV)/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The benchmark's cases under pytest-benchmark; `python -m fastgen.bench` is the one to read.
bench: $(VENV)/bench
	$(BIN)/python -m pytest -q bench/suites --benchmark-columns=median,iqr,rounds

# Everything beside its baselines, kept by machine, and the page made from it: on a quiet machine, half an hour.
bench-record: $(VENV)/bench
	$(BIN)/python -m fastgen.bench all --against eager,diffusers --json bench/results/$(MACHINE).json
	$(BIN)/python -m bench.report

# What the compiler makes of the kernels, without a GPU: docs/compile-gate.md.
gate: $(VENV)/dev $(TRITON_MIN)
	$(BIN)/python -m bench.compile_gate --also $(TRITON_MIN) --record

# On the machine with the GPU, which may be offline: whatever Python it has, nine minutes at most, each result kept as it
# comes. DRY=1 tries the plumbing on a CPU. Afterwards: python -m bench.report $(OUT)/results.jsonl
gpu:
	$(PYTHON) -m bench.gpu_run --out $(OUT) $(if $(DRY),--dry)

# The second run, under three minutes: FAILED names a file of tests (failed.txt of the first run), OLD a folder with the
# fastgen_kernels of before, for instance: mkdir old && git archive REV fastgen_kernels | tar x -C old
gpu-again: OUT = again
gpu-again:
	$(PYTHON) -m bench.gpu_run --out $(OUT) --again $(or $(FAILED),none) $(if $(OLD),--old $(OLD)) $(if $(DRY),--dry)

# A page that draws digits with the exported sampler: docs/onnx.md. Needs Node.js for npm.
browser: $(VENV)/core
	$(INSTALL) -e ".[onnx]"
	$(BIN)/python docs/browser/serve.py

clean:
	rm -rf $(VENV) build *.egg-info

$(VENV)/core: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) -e .
	touch $@

$(VENV)/dev: $(VENV)/core
	$(INSTALL) -e ".[dev,onnx]"
	touch $@

$(VENV)/bench: $(VENV)/dev
	$(INSTALL) -e ".[bench]"
	touch $@

$(TRITON_MIN): $(VENV)/dev
	$(PIP) install --quiet --no-deps --upgrade --target $@ triton==3.6.0
