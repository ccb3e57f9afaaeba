# make quickstart: install what is needed, build the playground and train both models on it.
# make evidence:   install what is needed, train and evaluate every arm of docs/results.md and write that page.
# make test:       install what is needed and run the unit tests, then those on the real stack.
SHELL := /bin/bash
BIN := .venv/bin
SEEDS ?=
ARMS ?=
.PHONY: help install quickstart evidence test test-unit test-stack test-cluster test-slurm lint docs clean

help:
	@echo "make quickstart   install, build the CPU-sized task, train both models, show what changed"
	@echo "make evidence     train and evaluate every arm of docs/results.md (SEEDS=201,202 ARMS=score,... for a part)"
	@echo "make test         install, run the tests (unit, then the real stack)"
	@echo "make test-cluster one run over two hosts, a lost host (root on Linux: network namespaces)"
	@echo "make test-slurm   a real SLURM: train, signal, requeue, resume, cancel (root on Debian)"
	@echo "make lint         ruff, mypy, bash -n, shellcheck"
	@echo "make docs         regenerate docs/configuration.md"
	@echo "make clean        remove .venv and caches (runs/ stays)"

install:
	@requirements/install_cpu.sh

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

lint: install
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .
	@$(BIN)/mypy
	@git ls-files '*.sh' '*.sbatch' .ci/run | while read -r f; do bash -n "$$f" && $(BIN)/shellcheck "$$f" || exit 1; done

docs: install
	@$(BIN)/python -m score_openrlhf.config.reference

clean:
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis
