# Everything a newcomer types. Needs Python 3.11 or newer, git and make; the rest installs itself into .venv.
#
#   make demo    the tour of README.md, for real, on this machine
#   make test    every test but the minutes-long ones, the lab included
#   make soak    the minutes-long ones: an hour and a half
#   make bench   measures, then prints the table of targets
#   make peers   installs what the benches are compared with, into build/peers
#   make lab     leaves three hosts up to try `runaway` against, until Ctrl-C
#   make lint    ruff and mypy --strict, as CI runs them
#   make clean   removes what the above made

VENV := .venv
PYTHON := $(VENV)/bin/python
STAMP := $(VENV)/.installed
PEERS := build/peers
PACKAGES := liborch runaway expegit parasearch

# For more words to pytest: make test ARGS='-k slots -x'
ARGS ?=

.PHONY: help demo test soak bench peers lab lint lint-style lint-format lint-types clean install packages

help:
	@sed -n 's/^#   //p' Makefile

# Installed again only when pyproject.toml, or how to install, changes.
$(STAMP): pyproject.toml .ci/install
	@sh .ci/install $(VENV)
	@touch $@

install: $(STAMP)

# The lab's Debian packages: quick when they are there, and nothing at all when not root.
packages:
	@sh .ci/packages

demo: $(STAMP)
	@sh examples/demo.sh $(VENV)/bin

test: $(STAMP) packages
	$(PYTHON) -m pytest -n 3 --dist worksteal -m "not soak" $(ARGS)

soak: $(STAMP) packages
	$(PYTHON) -m pytest -m soak $(ARGS)

peers: $(STAMP)
	@sh .ci/peers $(PYTHON) $(PEERS)

bench: $(STAMP) packages peers
	@$(PYTHON) benches/run.py --output build/bench.jsonl $(ARGS); status=$$?; \
	 $(PYTHON) benches/table.py build/bench.jsonl && exit $$status

lab: $(STAMP) packages
	@$(PYTHON) -m tests.lab

# Three, so that `make -k lint` tells everything at once.
lint: lint-style lint-format lint-types

lint-style: $(STAMP)
	$(PYTHON) -m ruff check .

lint-format: $(STAMP)
	$(PYTHON) -m ruff format --check .

lint-types: $(STAMP)
	$(PYTHON) -m mypy --strict $(addprefix --package=,$(PACKAGES))

clean:
	rm -rf $(VENV) build dist .lab .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
