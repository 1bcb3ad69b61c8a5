# polyak: `make train` is the whole tour, `make test` the whole suite, `make setup` what both need first.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.PHONY: help setup train test quick lint torture bench scores browser lock clean

BIN := .venv/bin
STAMP := .venv/.polyak-setup
EXTRAS := mujoco,robotics,atari,video,dev
PYTEST := $(BIN)/python -m pytest
WORKERS ?= auto

help:
	@echo 'make setup    virtual environment in .venv with everything (once; then it takes no time)'
	@echo 'make train    setup, then PPO on CartPole-v1 with 5 seeds, and its report'
	@echo 'make test     setup, then the whole test suite'
	@echo 'make quick    the tests that take seconds'
	@echo 'make lint     ruff and pyright (strict)'
	@echo 'make torture  kill runs 25 times at random, and compare what they end with'
	@echo 'make bench    speed beside the peers, scaling, starts (the machine must be idle)'
	@echo 'make scores   the acceptance rows (hours; it resumes where it stopped)'

setup: $(STAMP)

$(STAMP): pyproject.toml tools/interpreter.sh
	@if ! $(BIN)/python -c '' 2>/dev/null; then \
	  python=$$(sh tools/interpreter.sh); \
	  echo "setup: $$($$python --version) at $$python"; \
	  "$$python" -m venv --clear .venv; \
	fi
	@echo 'setup: installing polyak[$(EXTRAS)] into .venv'
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[$(EXTRAS)]'
	@touch $@

# mkdir takes a number for itself atomically, so two `make train` at once get two folders.
train: setup
	@mkdir -p runs; n=1; until mkdir "runs/cartpole_$$n" 2>/dev/null; do n=$$((n + 1)); done; \
	$(BIN)/polyak train ppo CartPole-v1 --steps 100_000 --seeds 5 --out "runs/cartpole_$$n"; \
	echo "The report: runs/cartpole_$$n/report.html"

test: setup browser
	$(PYTEST) -n $(WORKERS) --dist loadfile

quick: setup
	$(PYTEST) -n $(WORKERS) --dist loadfile -m 'not full'

lint: setup
	$(BIN)/ruff check src tests bench
	$(BIN)/pyright

torture: setup
	$(BIN)/python bench/torture.py

bench: setup
	bench/peers/setup.sh sb3 sbx rejax
	$(BIN)/python bench/speed.py
	$(BIN)/python bench/speed.py --limits
	$(BIN)/python bench/scaling.py

scores: setup
	$(BIN)/python bench/run.py

# One test looks at the report in headless Chromium; where it is missing, it is installed if we may.
browser:
	@if ! command -v chromium chromium-browser google-chrome >/dev/null 2>&1; then \
	  if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	    echo 'test: installing chromium'; \
	    { apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium; } >/dev/null \
	      || echo 'test: chromium could not be installed; the test that needs it will say so' >&2; \
	  else \
	    echo 'test: there is no chromium; install it for the test of the report' >&2; \
	  fi; \
	fi

lock:
	$(BIN)/uv lock --upgrade

clean:
	rm -rf .venv .pytest_cache .ruff_cache .hypothesis dist build
