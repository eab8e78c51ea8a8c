# Everything sets itself up: a fresh machine needs Python 3.11 or later, make and a package index.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: setup demo test test-real test-k8s check protos client lock bench clean

setup: .venv/ready             ## install all pinned libraries into .venv

.venv/ready: requirements/dev.txt requirements/bootstrap.txt pyproject.toml protos/pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements/bootstrap.txt
	$(BIN)/uv pip sync --quiet --python $(BIN)/python --require-hashes requirements/dev.txt requirements/bootstrap.txt
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation -e protos -e .
	touch $@

demo: setup                    ## run the quickstart trial, offline, and say where its report is
	$(BIN)/tunetrial demo

test: setup                    ## all tests that need nothing but this machine
	$(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder

test-real: setup               ## tests on real Elasticsearch and vLLM servers, and of Go callers; needs Maven, a JDK of Java 17 or later, and Go
	$(BIN)/pytest -v -n 2 --dist loadfile --real tests/real tests/contract/retriever/test_retriever_conformance.py

test-k8s: setup                ## training on a real Kubernetes control plane with simulated GPU nodes; needs Go, with which it is built once (10 minutes)
	$(BIN)/pytest -v -n 2 --dist loadfile --kubernetes tests/kubernetes

check: setup                   ## style, types, import contracts, the proto contract and its generated code
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/buf lint protos
	PYTHON=$(CURDIR)/$(BIN)/python protos/check.sh

protos: setup                  ## generate the code of the contract beside its source
	PYTHON=$(CURDIR)/$(BIN)/python protos/generate.sh

client: setup                  ## build the wheel that other services install to call the generator
	$(BIN)/python -m build --wheel --no-isolation --outdir dist protos

lock: setup                    ## pin the newest versions of all libraries, with hashes
	cd requirements && for name in bootstrap dev bench; do \
	  ../$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --upgrade --generate-hashes --no-header \
	    --no-emit-index-url --no-emit-find-links $$name.in -o $$name.txt; done; \
	  ../$(BIN)/uv pip compile --quiet --python-version 3.11 --python-platform x86_64-manylinux_2_28 --override vllm-override.txt \
	    --generate-hashes --no-header --no-emit-index-url --no-emit-find-links vllm.in -o vllm.txt

bench: setup                   ## measure; figures and their meaning are in benchmarks/RESULTS.md
	$(BIN)/python -m benchmarks

clean:                         ## remove the environment and all results
	rm -rf .venv .venv-bench .venv-vllm .tunetrial runs dist
