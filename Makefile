# Two commands do all the set-up on a fresh Debian 12 machine, as root: `make demo` and `make test`.
SHELL := /bin/bash
.SHELLFLAGS := -o pipefail -c
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CONTAINERD ?= 1.7
SOURCES := installer tests hatch_build.py daemonset
BUILDER ?= docker
TAG ?= flox-node:$(ARCH)

.PHONY: help setup bed demo demo-update manifests test test-unit test-containerd test-node test-cluster test-full cluster cluster-down image pins bench coverage lint format clean

help: ## Show this help
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

setup: $(VENV)/.stamp ## Make .venv with flox-node and what its tests need

$(VENV)/.stamp: pyproject.toml hatch_build.py tests/setup.sh $(shell find shim -name '*.go' -not -name '*_test.go')
	@tests/setup.sh $(PYTHON) $(VENV)
	@touch $@

bed: setup ## Prepare the test bed: containerd, runc, Nix, a payload, node root file systems (cached outside the tree)
	@$(BIN)/python -m tests.bed prepare

demo: bed ## Boot a node in a box, install, run a Flox pod in it, uninstall (CONTAINERD=1.7 or 2.1)
	@$(BIN)/python -m tests.demo --containerd $(CONTAINERD)

demo-update: bed ## A program's next releases on a node: generations of its environment beside images of it
	@$(BIN)/python -m tests.demo_update

test: lint test-unit test-containerd test-node test-cluster ## Lint and run one case of each kind

# Tests that own all they touch run on every core; a node box or a cluster takes the whole machine. The unit tests keep
# their order: xdist would put files of few tests last, and the longest test is alone in its file.
PARALLEL := -n auto --dist loadfile

test-unit: setup ## Without root and a network; ARGS='-k slots' for some of them
	@$(BIN)/python -m pytest $(PARALLEL) --no-loadscope-reorder tests/unit $(ARGS)

test-containerd: bed ## Against real daemons, runc and Nix
	@$(BIN)/python -m pytest $(PARALLEL) tests/containerd $(ARGS)

test-node: bed ## In node boxes with systemd
	@$(BIN)/python -m pytest tests/node $(ARGS)

test-cluster: bed ## A real control plane and two real nodes, where their programs are built (KUBERNETES=1.34)
	@$(BIN)/python -m pytest tests/cluster $(ARGS)

test-full: bed lint ## Everything, with the long runs
	@FLOX_NODE_FULL=1 $(BIN)/python -m pytest tests/unit tests/containerd tests/node tests/cluster

cluster: bed ## Start a cluster of two nodes that goes on running (KUBERNETES=1.34); builds its programs the first time
	@$(BIN)/python -m tests.cluster up

cluster-down: setup ## Remove it
	@$(BIN)/python -m tests.cluster down

image: setup ## Build the tests' image; with ARCH=amd64 (or arm64) the pinned one, by BUILDER=docker, as TAG=flox-node:amd64
ifndef ARCH
	@$(BIN)/python -m tests.bed image
else
	@arguments=$$($(BIN)/python daemonset/pins.py args $(ARCH)) && \
	eval "$(BUILDER) build --platform linux/$(ARCH) --file daemonset/Dockerfile --tag $(TAG) $(BUILD_OPTIONS) \
		--build-arg=REVISION=$$(git rev-parse HEAD) $$arguments ."
endif

pins: setup ## Look up what daemonset/pins.toml pins, and lock the wheels (needs a network, skopeo, nix, uv)
	@$(BIN)/python daemonset/pins.py fill

coverage: setup ## Branches of the Python and the Go code that the unit tests take; fails below the kept figures
	@tests/coverage.sh $(BIN)

bench: bed ## Measure; ONLY=name for one entry. Prints a table and writes bench.json
	@$(BIN)/python -m tests.bench $(if $(ONLY),--only $(ONLY))

lint: setup ## Format check, lint, types, layers, gofmt, go vet
	@$(BIN)/ruff format --check --quiet $(SOURCES)
	@$(BIN)/ruff check --quiet $(SOURCES)
	@$(BIN)/mypy
	@PYTHONPATH=installer $(BIN)/lint-imports --no-logo | tail -n 1
	@tests/lint-go.sh

format: setup ## Format the sources
	@$(BIN)/ruff format $(SOURCES)
	@$(BIN)/ruff check --fix $(SOURCES)

manifests: setup ## Render daemonset/flox-node.yaml from daemonset/base, with kubectl of the cluster tests
	@$(BIN)/python -m tests.kustomize

clean: ## Remove what was made in the tree (not the bed's cache: `python -m tests.bed clean`)
	@rm -rf $(VENV) dist bench.json .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache .coverage installer/flox_node/_shim
	@find . -name __pycache__ -prune -exec rm -rf {} +
