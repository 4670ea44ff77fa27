# The only commands anyone must know. Each sets up .venv first, if it has to.

PYTHON ?= python3
BIN := .venv/bin
DEMO := runs/demo

.PHONY: demo test check package budget bench gpu-check build toy clean

## What adaptation brings, on the toy and this machine's CPU: a start on the source, from which one run goes on with the
## source alone and one with DIDA; then the gain by class, pictures side by side, and the report.
ON_TOY := $(BIN)/python train.py --src toy-gta5 --tgt toy-cityscapes --device cpu
GO_ON := --init $(DEMO)/start --steps 300 --batch-size 2 --lr 0.001 --warmup 20 --bank-start 50 --bank-fill 50
demo: toy
	@if [ -d $(DEMO) ]; then mv $(DEMO) $(DEMO)-$$(date +%Y%m%d-%H%M%S); fi
	$(ON_TOY) --method source --steps 400 --out $(DEMO)/start
	$(ON_TOY) --method source $(GO_ON) --out $(DEMO)/source
	$(ON_TOY) --method dida $(GO_ON) --out $(DEMO)/dida
	$(BIN)/python -m dida report $(DEMO)/dida $(DEMO)/source --device cpu --out $(DEMO)/report.html
	$(BIN)/python -m bench.figures strips $(DEMO)/strip.png $(DEMO)/source $(DEMO)/dida --device cpu
	@echo "the same pictures seen by both: $(DEMO)/strip.png; everything else: $(DEMO)/report.html"

## The whole test suite, on the CPU: one thread in each of one process more than there are cores, as many tests wait.
test: .venv/ready
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests --dist worksteal --durations 10 \
		--numprocesses $$($(BIN)/python -c "import os; print((os.cpu_count() or 1) + 1)")

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

## On a machine with a GPU, in 545 s what fits: everything that needs one, stage by stage (bench/gpu/stages.py). It needs no
## .venv (PYTHON=python3), and where git does not travel DIDA_COMMIT=<hash>. Two files come back, in OUT. After a fix
## STAGES="build agreement no-waiting" runs those alone. Then, on any machine, tables, targets and the figure:
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
