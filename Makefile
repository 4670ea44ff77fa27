# The only commands anyone must know. Each sets up .venv first, if it has to.

PYTHON ?= python3
BIN := .venv/bin
DEMO := runs/demo

.PHONY: demo test check package budget bench gpu-check build toy clean

## Train DIDA on the toy benchmark on this machine's CPU, score it, and say where the pictures are.
demo: toy
	@if [ -d $(DEMO) ]; then mv $(DEMO) $(DEMO)-$$(date +%Y%m%d-%H%M%S); fi
	$(BIN)/python train.py --src toy-gta5 --tgt toy-cityscapes --method dida --steps 600 --device cpu --out $(DEMO)
	$(BIN)/python eval.py $(DEMO) --tgt toy-cityscapes --device cpu --json $(DEMO)/val.json --save-predictions $(DEMO)/predictions
	@echo "pictures: $(DEMO)/panels (training), $(DEMO)/predictions/colour (validation)"

## The whole test suite, on the CPU: one thread in each of as many processes as there are cores.
test: .venv/ready
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests --numprocesses auto --durations 10

## Lint, format, and the types of both packages.
check: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

## Source distribution and wheel in dist/, each then tried where nothing else is installed but what it declares,
## and the wheel from training to a network in use.
package: .venv/ready
	rm -rf dist
	$(BIN)/python -m build --outdir dist
	$(BIN)/python .ci/try_packages.py dist
	$(BIN)/python .ci/try_use.py dist

## Compile every kernel for sm_80, sm_86 and sm_90 and hold it to its budget (no GPU; UPDATE=1 rewrites them).
budget: .venv/ready
	$(BIN)/python -m bench.compiled.budget $(if $(UPDATE),--update,--check)

## Memory as the bank grows, and every operation against its equation.
bench: .venv/ready
	$(BIN)/python bench/bank_memory.py
	$(BIN)/python bench/kernels.py
	$(BIN)/python bench/bank_update.py

## On a machine with a GPU, at most 10 minutes: everything that needs one, stage by stage (bench/gpu/stages.py). It needs no
## .venv (PYTHON=python3), and where git does not travel DIDA_COMMIT=<hash>. Two files come back, in OUT. After a fix
## STAGES="smoke agreement" runs those alone. Then, on any machine, tables, targets and the figure:
##     python -m bench.gpu.report OUT/results.json --results bench/results --page docs/performance.md
OUT ?= runs/gpu
gpu-check:
	$(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON)) -m bench.gpu --out $(OUT) $(if $(STAGES),--stages $(STAGES))

## Compile the C++/CUDA extension again, in place.
build: .venv/ready
	$(BIN)/python setup.py build_ext --inplace

toy: .venv/ready
	$(BIN)/python -m dida.data.toy --data-root data

.venv/ready: pyproject.toml constraints.txt setup.py $(wildcard csrc/*)
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	$(BIN)/python setup.py --quiet build_ext --inplace
	@touch $@

clean:
	rm -rf .venv build dist *.egg-info dida_kernels/*.so
