# Two commands do everything on a fresh machine with Python 3.10 to 3.13:
#   make demo    the main job: weights -> ONNX -> segmented and timed frames
#   make test    lint, format check, types, tests
# Both make the same .venv when it is missing or older than the files that define it.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.complete

.PHONY: demo test lint format types pytest gpu-rules fuzz chaos soak setup clean
.DELETE_ON_ERROR:

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt scripts/make_venv.sh
	@PYTHON="$(PYTHON)" VENV="$(VENV)" sh scripts/make_venv.sh
	@touch $(STAMP)

demo: $(STAMP)
	@$(BIN)/python scripts/demo.py $(if $(FRAMES),--frames "$(FRAMES)")

test: lint types pytest

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)
	$(BIN)/mypy

pytest: $(STAMP)
	$(BIN)/python -m pytest -q -n auto --dist loadscope -m "not serial and not gpu"
	$(BIN)/python -m pytest -q -m serial

# Damaged input for every reader; kills and full disks for every command that writes; one model for long.
N ?= 20000
KILLS ?= 200
MINUTES ?= 30

fuzz: $(STAMP)
	$(BIN)/python -m tests.robustness.fuzz --count $(N) --json out/fuzz.json

chaos: $(STAMP)
	$(BIN)/python -m tests.robustness.chaos --kills $(KILLS) --json out/chaos.json

soak: $(STAMP)
	$(BIN)/python -m tests.robustness.soak --minutes $(MINUTES) --json out/soak.json

# The GPU code on real CUDA libraries over a stub driver; makes environments of its own (1.1 GB).
gpu-rules: $(STAMP)
	@PYTHON="$(BIN)/python" sh scripts/gpu_rules.sh

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache
