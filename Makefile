# Two commands matter: `make demo` and `make test`. Everything runs in .venv, which make sets up by itself.
PYTHON  ?= python3
VENV    := .venv
BIN     := $(VENV)/bin
STAMP   := $(VENV)/.built
PEERS   := .venv-peers
SOURCES := pyproject.toml setup.py $(wildcard native/*.[ch] native/*/*.[ch] fastledger/_native/*.pyx fastledger/_native/*.pxd)
PIP     := -m pip install --quiet --disable-pip-version-check

.DEFAULT_GOAL := help
.PHONY: help build wheel sdist demo net-demo test lint types unit docs bench soak simulate fuzz sanitize emulate clean

## make demo      hospital histories through the whole engine (BUNDLES=path for FHIR sources of your own)
demo: $(STAMP)
	$(BIN)/fastledger demo $(if $(BUNDLES),--bundles $(BUNDLES))

## make net-demo  four organisations on this machine, a partition and its healing, watched in one view
net-demo: $(STAMP)
	$(BIN)/fastledger net-demo

## make test      lint, types, layers and every test (WORKERS=n processes)
WORKERS ?= 2
test: lint types unit

lint: $(STAMP)
	$(BIN)/ruff check fastledger tests benchmarks packaging setup.py

types: $(STAMP)
	$(BIN)/mypy

unit: $(STAMP) $(PEERS)/.built
	$(BIN)/pytest -n $(WORKERS) --dist worksteal

## make docs      the pages of docs/ that follow from declarations: subjects.md, the methods in rpc.md
docs: $(STAMP)
	$(BIN)/python -m fastledger.cli.derived.pages docs

## make bench     every benchmark beside its peers, a table, a chart and tuning advice (bench-results/)
bench: $(STAMP)
	$(BIN)/python benchmarks/report.py
	$(BIN)/python benchmarks/bench_federation.py
	$(BIN)/fastledger bench --json bench-results/kernels.json --chart bench-results/kernels.svg

## make soak      kill -9 hundreds of times, the demo on all of the shared histories, a partition of 30 s, a million transactions through a node
soak: $(STAMP)
	FASTLEDGER_CRASH_ROUNDS=200 FASTLEDGER_NODE_CRASH_ROUNDS=100 FASTLEDGER_FULL_DEMO=1 $(BIN)/pytest tests/whole/test_crash.py tests/node/test_node_crash.py tests/whole/test_demo.py
	FASTLEDGER_INGEST_ROUNDS=180 $(BIN)/pytest tests/client/test_ingest_again.py
	FASTLEDGER_FEDERATION_PARTITION_S=30 $(BIN)/pytest tests/whole/test_federation.py -k partition
	$(BIN)/python benchmarks/soak_node.py
	PYTHONPATH=tests:tests/support $(BIN)/python -m simulator 0:2000

## make simulate  whole federations under faults, from seeds (SEEDS=from:to, or one seed; docs/simulator.md)
SEEDS ?= 0:100
simulate: $(STAMP)
	PYTHONPATH=tests:tests/support $(BIN)/python -m simulator $(SEEDS)

## make fuzz      the property tests with many more examples
fuzz: $(STAMP)
	HYPOTHESIS_PROFILE=fuzz $(BIN)/pytest tests/native/test_variants.py tests/native/test_scan.py tests/native/test_cbor_strict.py tests/native/test_ecdsa.py tests/native/test_ecdsa_paths.py tests/crypto/test_envelope.py tests/model/test_model.py tests/whole/test_bad_input.py tests/rpc/test_rpc_schema.py
	PYTHONPATH=tests:tests/support $(BIN)/python tests/native/fuzz_ecdsa.py

## make sanitize  the native tests under AddressSanitizer and UBSan
sanitize: $(VENV)/bin/python
	./.ci/sanitize $(BIN)/python

## make emulate   the AVX-512 kernels on emulated AVX-512 instructions (tests/emulator/README.md)
SIGNATURES ?= 5000
HASH_ITEMS ?= 10000
emulate: $(STAMP)
	$(BIN)/python tests/native/lane_vectors.py build/lanes.bin $(SIGNATURES)
	$(BIN)/python tests/emulator/run.py lanes build/lanes.bin
	$(BIN)/python tests/native/sha_vectors.py build/sha.bin $(HASH_ITEMS)
	$(BIN)/python tests/emulator/run.py sha build/sha.bin

## make wheel     a wheel for this machine's Python in dist/ (make sdist: the sources; cibuildwheel makes those to publish)
wheel: $(STAMP)
	rm -rf build/lib.* build/bdist.*
	$(BIN)/python setup.py --quiet bdist_wheel

sdist: $(STAMP)
	$(BIN)/python setup.py --quiet sdist

build: $(STAMP)

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(STAMP): $(VENV)/bin/python $(SOURCES)
	$(BIN)/python $(PIP) -e '.[dev]'
	@touch $(STAMP)

# A COSE library that is not ours needs an older cbor2: it lives apart, and our codec is tried with that one too.
$(PEERS)/.built: tests/foreign/requirements.txt
	$(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/python $(PIP) -r tests/foreign/requirements.txt
	@touch $(PEERS)/.built

clean:
	rm -rf $(VENV) $(PEERS) build dist *.egg-info fastledger/_native/*.so

help:
	@sed -n 's/^## //p' Makefile
