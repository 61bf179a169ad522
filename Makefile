# Two commands matter: `make demo` and `make test`. Everything runs in .venv, which make itself sets up.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.built
SOURCES := pyproject.toml setup.py $(wildcard native/*.[ch] native/*/*.[ch] fastledger/_native/*.pyx fastledger/_native/*.pxd)

.DEFAULT_GOAL := help
.PHONY: help build test

help:
	@sed -n 's/^## //p' Makefile

build: $(STAMP)

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(STAMP): $(VENV)/bin/python $(SOURCES)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $(STAMP)
