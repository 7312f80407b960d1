# Two commands that work on a fresh machine with Python >= 3.11: make study, make test.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt

.PHONY: setup setup-dev study test test-frameworks check prove bench bench-peers docs wheel clean

setup: .venv/.run            ## what the main job needs
setup-dev: .venv/.dev        ## and what tests and checks need

.venv/.run: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(PIP) -e ".[report,data]"
	touch $@

.venv/.dev: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(PIP) -e ".[dev]"
	touch $@ .venv/.run

study: setup                 ## the main job on the embedded digits task
	mkdir -p study
	$(BIN)/batchscope study digits --store study/batchscope.db

test: setup-dev              ## under ten minutes on two cores; a file's tests stay in one process
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not long and not processes"

test-frameworks: setup-dev   ## what needs Lightning, Transformers, Accelerate or Ray, many processes, or minutes; the examples
	$(PIP) -e ".[dev,frameworks,ray]"
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "long and not processes"
	$(BIN)/python -m pytest -m processes
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder tests/integrations

check: setup-dev             ## lint, format, types, import direction
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/ty check src
	$(BIN)/python -m pytest tests/test_house.py

bench: setup-dev             ## comparisons as ratios, with the environment they ran in
	$(PIP) -e ".[bench]"
	$(BIN)/python benchmarks/loop.py
	$(BIN)/python benchmarks/parallel.py
	$(BIN)/python benchmarks/memory.py
	$(BIN)/python benchmarks/law_coverage.py
	$(BIN)/python benchmarks/noise_coverage.py

bench-peers: setup-dev       ## beside BackPACK, gns-pytorch, PyHessian and TensorFlow, which stay out of our environment
	test -x .venv-peers/bin/python || $(PYTHON) -m venv .venv-peers
	.venv-peers/bin/python -m pip install -q -c constraints.txt torch numpy scipy packaging einops
	.venv-peers/bin/python -m pip install -q --no-deps backpack-for-pytorch unfoldNd gns-pytorch
	$(BIN)/python benchmarks/noise.py --save --peers .venv-peers/bin/python
	$(PIP) --no-deps --target benchmarks/.work/peers pyhessian
	$(BIN)/python benchmarks/sharpness.py --save
	test -x .venv-tensorflow/bin/python || $(PYTHON) -m venv .venv-tensorflow
	.venv-tensorflow/bin/python -m pip install -q tensorflow-cpu
	$(BIN)/python benchmarks/parallel.py --save --peers .venv-tensorflow/bin/python

prove: setup-dev             ## what is too long for the tests; resumable; results under benchmarks/results/
	$(BIN)/python benchmarks/prove.py

docs:                        ## the docs are plain Markdown: nothing to build yet
	@ls docs

wheel: setup-dev
	$(BIN)/python -m build --wheel

clean:
	rm -rf .venv dist build study
