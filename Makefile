# SPDX-License-Identifier: MIT
#
# Every task of the repository. Targets run in virtual environments under .venv and .venvs that
# are made on first use; system packages are ./demo's and ./check's business (.ci/setup).

PYTHON ?= python3
PY := .venv/bin/python
EXTENSION := usdt/_probe.c
SHOP := docs/examples/shop

# A virtual environment records the path of the checkout: one that was moved or copied gets new
# stamps, and with them a new environment.
HERE := $(shell pwd -P | cksum | cut -d ' ' -f 1)
TOOLS := .venv/tools-$(HERE)
DEV := .venv/dev-$(HERE)

# $(call environment,DIRECTORY,PYTHON,EXTRA): pip prints errors only. An editable
# install builds the extension in place, once: hence the prerequisite on its source.
define environment
	@echo "installing: Python packages of .[$(3)] into $(1)"
	@test -x $(1)/bin/pip || $(2) -m venv --clear $(1)
	@$(1)/bin/python -m pip install -qq --disable-pip-version-check -e '.[$(3)]' || { \
	  echo "pip could not install .[$(3)]: see its network and index settings with" \
	    "'$(1)/bin/python -m pip config list', then run this again" >&2; exit 1; }
	@touch $@
endef

# $(call manpage,COMMAND,MODULE,PURPOSE): the module's parser() as build/man/COMMAND.1. man(1)
# finds a page by its line NAME, which is the PURPOSE.
define manpage
	.venv/bin/argparse-manpage --module $(2) --function parser --prog $(1) --description $(3) \
	  --project-name usdt-toolkit --manual-title usdt-toolkit --output build/man/$(1).1
endef

.DEFAULT_GOAL := help
.PHONY: help demo test lint types test-minors bench bench-ustack docs wheel clean

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*  ## /\1\t/p' Makefile | expand -t 14

demo: $(TOOLS)  ## run a small HTTP service under stock bpftrace
	@$(PY) $(SHOP)/run.py

test: lint types test-minors  ## run every check; the last lines are pytest's summary
	$(PY) -m pytest

lint: $(DEV)  ## check style: ruff, and shellcheck where it is installed
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	@if command -v shellcheck >/dev/null; \
	then set -x; shellcheck -x demo check .ci/run .ci/setup .ci/minors; \
	else echo "shellcheck is not installed: apt-get install shellcheck"; test -z "$$CI"; fi

types: $(DEV)  ## check types: mypy --strict
	$(PY) -m mypy
	MYPYPATH=$(SHOP) $(PY) -m mypy --strict $(SHOP)

test-minors: $(DEV)  ## run the unit tests on every other CPython >= 3.10 of this machine
	@.ci/minors "$$($(PY) -c 'import sys; print("%d.%d" % sys.version_info[:2])')" | \
	{ status=0; while read -r minor python; do \
	  echo "CPython $$minor: $$python"; \
	  $(MAKE) --no-print-directory test-minor MINOR="$$minor" PYTHON="$$python" </dev/null || status=1; \
	done; exit $$status; }

bench: $(DEV)  ## measure, and print the table of docs/performance.md
	$(PY) -m benchmarks.run

bench-ustack: $(DEV)  ## measure notes and symbols, and print them with their bars
	$(PY) -m benchmarks.ustack_notes
	$(PY) -m benchmarks.ustack_symbols

docs: $(DEV)  ## write the man pages to build/man, run the documents' examples
	@mkdir -p build/man
	$(call manpage,usdt,usdt.cli,'find and trace the USDT probes of Python programs')
	$(call manpage,usdt-stubgen,stubgen.cli,'make and show ELF stubs that carry USDT probes')
	$(call manpage,ustack,ustack.cli,'name the frames of stacks from kernel to interpreter')
	$(PY) -m pytest tests/docs

wheel: $(DEV)  ## build the sdist, and from it the wheel, into dist/
	$(PY) -m build

clean:  ## delete everything that was built or installed here
	rm -rf .venv .venvs build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	rm -f usdt/*.so
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(TOOLS): pyproject.toml $(EXTENSION)
	$(call environment,.venv,$(PYTHON),tools)

$(DEV): pyproject.toml $(EXTENSION)
	$(call environment,.venv,$(PYTHON),dev)
	@touch $(TOOLS)

# One CPython minor; test-minors sets MINOR and PYTHON.
MINOR_ENV := .venvs/$(MINOR)
MINOR_STAMP := $(MINOR_ENV)/dev-$(HERE)

.PHONY: test-minor
test-minor: $(MINOR_STAMP)
	$(MINOR_ENV)/bin/python -m pytest -q -p no:cacheprovider tests/unit

$(MINOR_STAMP): pyproject.toml $(EXTENSION)
	$(call environment,$(MINOR_ENV),$(PYTHON),dev)
