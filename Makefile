# make quickstart: install what is needed, build the playground and train both models on it.
# make evidence:   install what is needed, train and evaluate every arm of docs/results.md and write that page.
# make test:       install what is needed and run the unit tests, then those on the real stack.
SHELL := /bin/bash
BIN := .venv/bin
SEEDS ?=
ARMS ?=
.PHONY: help install install-cuda lock-cuda check-requirements gpu-smoke quickstart evidence test test-unit test-stack \
	test-cluster test-slurm mutants lint docs docs-site dist clean

help:
	@echo "make install-cuda what a machine with NVIDIA GPUs needs, into .venv (ATTENTION=sdpa: without flash-attn and nvcc)"
	@echo "make quickstart   install, build the CPU-sized task, train both models, show what changed"
	@echo "make evidence     train and evaluate every arm of docs/results.md (SEEDS=201,202 ARMS=score,... for a part)"
	@echo "make test         install, run the tests (unit, then the real stack)"
	@echo "make test-cluster one run over two hosts, a lost host (root on Linux: network namespaces)"
	@echo "make test-slurm   a real SLURM: train, signal, requeue, resume, cancel (root on Debian)"
	@echo "make mutants      put faults into a copy of the tree; print those that no test sees"
	@echo "make gpu-smoke    training on one, two and four of this machine's GPUs, a line for each part"
	@echo "make check-requirements  the lock of GPU machines is complete and consistent (reads metadata alone)"
	@echo "make lint         ruff, mypy, bash -n, shellcheck"
	@echo "make docs         regenerate docs/configuration.md and docs/metrics.md"
	@echo "make docs-site    build docs/ as a site into build/site, which no network is needed to read"
	@echo "make dist         build the wheel and the sdist into dist/, check them with twine"
	@echo "make clean        remove .venv, builds and caches (runs/ stays)"

install:
	@requirements/install_cpu.sh

install-cuda:
	@requirements/install_cuda.sh

lock-cuda:
	@requirements/lock_cuda.sh

check-requirements:
	@requirements/lock_cuda.sh --check

gpu-smoke:
	@$(BIN)/python -m benchmarks.gpu_smoke

quickstart: install
	@$(BIN)/score-openrlhf playground configs/playground.yaml

evidence: install
	@$(BIN)/python -m benchmarks.evidence $(if $(SEEDS),--seeds $(SEEDS)) $(if $(ARMS),--arms $(ARMS))

test: install
	@$(BIN)/python tests/run_all.py

test-unit: install
	@$(BIN)/python -m pytest tests/unit -q

test-stack: install
	@$(BIN)/python -m pytest tests/stack -q

test-cluster: install
	@tests/cluster/install.sh
	@$(BIN)/python -m pytest tests/cluster/test_ray_cluster.py -q -s

test-slurm: install
	@tests/cluster/install.sh
	@$(BIN)/python -m pytest tests/cluster/test_slurm.py -q -s

mutants: install
	@$(BIN)/python tests/mutants.py

lint: install
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .
	@$(BIN)/mypy
	@git ls-files '*.sh' '*.sbatch' .ci/run | while read -r f; do bash -n "$$f" && $(BIN)/shellcheck -x "$$f" || exit 1; done

docs: install
	@$(BIN)/python -m score_openrlhf.config.reference && $(BIN)/python -m score_openrlhf.rollout.metric_table

# the environment has no torch and no project in it: the API is read from the sources
docs-site: build/docs-tools
	@NO_MKDOCS_2_WARNING=1 build/docs-tools/bin/python -m mkdocs build --quiet --strict && echo "build/site/index.html (search needs it served: python3 -m http.server -d build/site)"

dist: build/dist-tools
	@rm -rf dist && build/dist-tools/bin/python -m build --outdir dist . && build/dist-tools/bin/python -m twine check --strict dist/*

build/docs-tools:
	@python3 -m venv $@.new && $@.new/bin/pip install --quiet --disable-pip-version-check mkdocs==1.* mkdocs-material==9.* \
		mkdocstrings-python==2.* ruff
	@rm -rf $@ && mv $@.new $@

build/dist-tools:
	@python3 -m venv $@.new && $@.new/bin/pip install --quiet --disable-pip-version-check build==1.* twine==6.*
	@rm -rf $@ && mv $@.new $@

clean:
	rm -rf .venv build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
