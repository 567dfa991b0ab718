# The README's two commands are `make train` and `make test`; each sets up .venv by itself.

PYTHON ?= python3
BIN := .venv/bin
# Of the compilers for TPUs and GPUs, which only plans need: JAX loads each wherever it is installed,
# and the GPU's says on every command's stderr that there is no GPU.
PLAN := .venv/plan
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: train test lint test-fast test-slow format results results-converting results-training results-bfloat16 results-input results-segmentation results-export results-pictures results-roadmap results-creating results-segmentation-plans results-detection results-scenes results-detection-plans results-tpu-step results-gpu-step results-cpu-forms results-scaling docs bench bench-check chaos rehearsal clean

train: .venv/.train
	$(BIN)/python -m convnext_jax.main --config configs/digits.py --workdir runs/digits

test: lint test-fast

lint: .venv/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright

# Three processes on two cores: compiling, which most of the time goes to, uses one core each, while
# tests of scripts and signals wait.
test-fast: .venv/.test
	$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder -m "not slow"

test-slow: .venv/.plan
	PYTHONPATH=$(PLAN) $(BIN)/python -m pytest -m slow

format: .venv/.test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Trains, tests, and writes what came out into the README.
results: .venv/.test
	$(BIN)/python -m benchmarks.readme --measure digits,tests

# Measures conversion, and writes it into docs/converting.md.
results-converting: .venv/.test
	$(BIN)/python -m benchmarks.converting

# Trains small runs with the whole recipe, and writes what came out into docs/training.md.
results-training: .venv/.test
	$(BIN)/python -m benchmarks.training

# Trains in bfloat16 beside float32, and writes how far they are apart into docs/training.md.
results-bfloat16: .venv/.test
	$(BIN)/python -m benchmarks.bfloat16

# Measures the input pipeline beside timm's, and writes it into docs/performance.md.
# What rows of segmentation and detection cost goes into a file of results alone.
results-input: .venv/.test
	$(BIN)/python -m benchmarks.input
	$(BIN)/python -m benchmarks.input_tasks

# Measures UPerNet beside Hugging Face's, and writes it into docs/performance.md; wants a quiet
# machine.
results-segmentation: .venv/.test
	$(BIN)/python -m benchmarks.segmentation

# Measures Mask R-CNN and its operations beside torchvision's, and writes it into docs/detection.md;
# wants a quiet machine, 16 GB of memory, and a torchvision built for the same PyTorch.
results-detection: .venv/.test
	$(BIN)/python -m benchmarks.detection

# Trains on scenes of digits, from random weights and from a classifier, and writes it into
# docs/detection.md; half an hour on a quiet machine.
results-scenes: .venv/.test
	$(BIN)/python -m benchmarks.scenes

# Plans the training of Cascade Mask R-CNN on small TPU slices, and writes it into docs/detection.md;
# a quarter of an hour for each.
results-detection-plans: .venv/.plan
	PYTHONPATH=$(PLAN) $(BIN)/python -m benchmarks.detection_plans

# Measures exported models beside timm's export, and writes it into docs/export.md.
results-export: .venv/.test
	$(BIN)/python -m benchmarks.export

# Follows PyTorch for 200 steps, and draws the pictures of README and docs from result files.
results-pictures: .venv/.test
	PYTHONPATH=tests $(BIN)/python -m benchmarks.pictures --measure

# Trains four steps of the roadmap on the digits, and writes docs/roadmap.md's tables and figures.
results-roadmap: .venv/.test
	$(BIN)/python -m benchmarks.roadmap --measure

# Plans the training of UPerNet on small TPU slices, and writes it into docs/segmentation.md.
results-segmentation-plans: .venv/.plan
	PYTHONPATH=$(PLAN) $(BIN)/python -m benchmarks.segmentation_plans

# Compiles a step for TPUs with and without the forms made for them, and writes it into
# docs/performance.md; two hours.
results-tpu-step: .venv/.plan
	PYTHONPATH=$(PLAN) $(BIN)/python -m benchmarks.tpu_step

# Compiles a step for GPUs, and writes what it moves into docs/performance.md; ten minutes.
results-gpu-step: .venv/.plan
	PYTHONPATH=$(PLAN) $(BIN)/python -m benchmarks.gpu_step

# Measures forms of operations for CPUs beside others; wants a quiet machine.
results-cpu-forms: .venv/.test
	$(BIN)/python -m benchmarks.cpu_forms

# Plans large runs on TPU slices, minutes each, and writes what came out into docs/scaling.md.
results-scaling: .venv/.plan
	PYTHONPATH=$(PLAN) $(BIN)/python -m benchmarks.scaling

# Writes the pages that are made from code.
docs: .venv/.test
	$(BIN)/python -m convnext_jax.config_keys > docs/configuration.md

# Measures how long `create_model` takes beside timm's, and writes it into docs/performance.md; wants
# a quiet machine. Fails where it takes longer than promised.
results-creating: .venv/.test
	$(BIN)/python -m benchmarks.creating

# Measures the models beside their peers, and writes it into docs/performance.md; wants a quiet
# machine.
bench: .venv/.test
	$(BIN)/python -m benchmarks.models --model convnext_tiny --mode infer,train --batch 8 --dtype float32,bfloat16

# Kills runs of two processes at random moments, and writes how they ended into docs/reliability.md.
chaos: .venv/.test
	PYTHONPATH=tests $(BIN)/python -m e2e.chaos

# Drives the commands through stand-ins for ImageNet-1K, ImageNet-22K and a large folder, ConvNeXt-XL's
# state, and 32 processes; most of an hour on 2 cores, 24 GB of memory, 20 GB of disk. Writes what came
# out into docs/reliability.md. One part: `.venv/bin/python -m benchmarks.rehearsal --only PART`.
rehearsal: .venv/.test
	$(BIN)/python -m benchmarks.rehearsal

# Measures again what the committed files for this kind of device say, and compiles for TPUs and
# GPUs again; fails where a ratio fell. Half an hour.
bench-check: .venv/.test .venv/.plan
	$(BIN)/python -m benchmarks.check
	PYTHONPATH=$(PLAN) $(BIN)/python -m benchmarks.check --plans

.venv/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed")'
	$(PYTHON) -m venv .venv

.venv/.train: requirements.txt setup.cfg pyproject.toml | .venv/bin/python
	$(BIN)/pip install -q -r requirements.txt
	$(BIN)/pip install -q --no-deps -e .
	touch $@

.venv/.test: .venv/.train requirements-test.txt
	$(BIN)/pip install -q -r requirements-test.txt
	touch $@

.venv/.plan: requirements-plan.txt .venv/.test
	$(BIN)/pip install -q --no-deps --upgrade --target $(PLAN) -r requirements-plan.txt
	touch $@

clean:
	rm -rf .venv build *.egg-info .pytest_cache .ruff_cache
