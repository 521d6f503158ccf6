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

.PHONY: demo test test-all lint format bench bench-record gate gpu clean

demo: $(VENV)/core
	$(BIN)/fastgen sample zoo:ddpm-mnist --count 64 --labels 0-9 --seed 0 --out demo.png --overwrite

test: $(VENV)/dev
	$(PYTEST) -m "not slow and not gpu"

test-all: $(VENV)/dev $(TRITON_MIN)
	FASTGEN_TRITON_MIN=$(TRITON_MIN) $(PYTEST) -m "not gpu"

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

# Everything beside its rivals, kept by machine, and the page made from it: on a quiet machine, half an hour.
bench-record: $(VENV)/bench
	$(BIN)/python -m fastgen.bench all --against eager,diffusers --json bench/results/$(MACHINE).json
	$(BIN)/python -m bench.report

# What the compiler makes of the kernels, without a GPU: docs/compile-gate.md.
gate: $(VENV)/dev $(TRITON_MIN)
	$(BIN)/python -m bench.compile_gate --also $(TRITON_MIN) --record

# On the machine with the GPU, which may be offline: whatever Python it has, results of each suite kept as it ends;
# then all speeds, a row at a time, for bench/results and for OUT.
GPU_SUITES := kernels runtime engines bench
gpu: MACHINE = h200
gpu:
	mkdir -p $(OUT)
	status=0; for suite in $(GPU_SUITES); do \
	  PYTHONPATH=. $(PYTHON) -m pytest -q -m gpu tests/$$suite --junitxml=$(OUT)/gpu-$$suite.xml; code=$$?; \
	  if [ $$code -ne 0 ]; then status=1; fi; done; \
	if $(PYTHON) -c "import sys, torch; sys.exit(not torch.cuda.is_available())"; then \
	  PYTHONPATH=. $(PYTHON) -m fastgen.bench all --device cuda --against eager,compile,diffusers \
	    --json bench/results/$(MACHINE).json || status=1; cp bench/results/$(MACHINE).json $(OUT)/; \
	else echo "no CUDA device: nothing was timed"; fi; exit $$status

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
