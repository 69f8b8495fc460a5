# Every target says what it does: `make help`. Paths here are relative, so that spaces above do no harm.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.ONESHELL:
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

PYTHON ?=
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
BENCH := build/bench
DRILLS := build/drills
FAULTS ?= 100
SEED ?= 1

.PHONY: help install format lint test demo bench drills clean kafka java lock

help: ## say what each target does
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: $(STAMP) ## make .venv with the locked packages and this project; nothing to do the second time

format: $(STAMP) ## format the code and mend what can be mended mechanically
	@$(BIN)/python -m ruff check --fix .
	$(BIN)/python -m ruff format .

lint: $(STAMP) ## ruff, mypy and codespell
	@$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy
	$(BIN)/python -m codespell_lib .

test: $(STAMP) kafka ## all tests, a real Apache Kafka included; make test ARGS="-k ledger" for some
	@HEADRACE_REQUIRE_KAFKA=1 $(BIN)/python -m pytest $(ARGS)

demo: $(STAMP) ## MovieLens-100K through every part: logs, samples, cluster, export, query, report
	@$(BIN)/python -m jobs.main demo $(ARGS)

bench: $(STAMP) kafka ## all benchmarks, which takes hours; tables here, JSON files in build/bench
	@names=$$($(BIN)/python -c 'from jobs.bench.main import BENCHMARKS; print(*BENCHMARKS)')
	for name in $$names; do
		$(BIN)/python -m jobs.main bench $$name --out $(BENCH)/$$name.json
	done

drills: $(STAMP) kafka ## FAULTS=100 faults by schedule SEED=1, torn pushes restored, then counted; JSON files in build/drills
	@$(BIN)/python -m tests.drills --faults $(FAULTS) --seed $(SEED) --on-torn-push restore --out $(DRILLS)/restore.json
	$(BIN)/python -m tests.drills --faults $(FAULTS) --seed $(SEED) --on-torn-push count --overlap --out $(DRILLS)/count.json

clean: ## remove everything that make has made: environment, caches, outputs
	@rm -rf $(VENV) .cache build dist demo-output *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

kafka: $(STAMP) java ## fetch Apache Kafka's jars into .cache/kafka, once
	@$(BIN)/python -m tests.kafka.install > /dev/null

java: ## check for Java 17 and Maven; on Debian as root, install them
	@found() { java -version 2>&1 | grep -Eq 'version "(1[7-9]|[2-9][0-9])' && mvn --version > /dev/null 2>&1; }
	if found; then exit 0; fi
	if [ "$$(id -u)" = 0 ] && command -v apt-get > /dev/null; then
		echo "installing Java 17 and Maven with apt-get"
		export DEBIAN_FRONTEND=noninteractive
		apt-get update -qq > /dev/null < /dev/null || true
		apt-get install -y -qq --no-install-recommends openjdk-17-jre-headless maven > /dev/null < /dev/null || true
	fi
	if ! found; then
		echo "missing: Java 17 or later and Maven (java, mvn on PATH); on Debian: apt-get install openjdk-17-jre-headless maven" >&2
		exit 1
	fi

lock: $(STAMP) ## pin all dependencies of setup.py in requirements.lock, after a change there
	@$(BIN)/python -m uv pip compile -q setup.py --extra test --extra dev --python-version 3.11 --generate-hashes \
		--no-annotate --no-emit-index-url --custom-compile-command "make lock" -o requirements.lock

# uv installs in seconds what takes pip more than a minute. Where it is missing, pip fetches it first.
$(STAMP): requirements.lock setup.py
	@is_311() { "$$1" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' > /dev/null 2>&1; }
	if ! is_311 $(BIN)/python; then
		python=
		for candidate in $(PYTHON) python3.11 python3 python; do
			if is_311 $$candidate; then python=$$candidate; break; fi
		done
		if [ -z "$$python" ]; then
			echo "missing: Python 3.11 (found: $$(python3 --version 2> /dev/null || echo none)); on Debian 12: apt-get install python3 python3-venv, or name one: make PYTHON=/path/to/python3.11" >&2
			exit 1
		fi
		rm -rf $(VENV)
		if uv --version > /dev/null 2>&1; then
			uv venv -q --python "$$(command -v $$python)" $(VENV)
		elif ! $$python -m venv $(VENV) > /dev/null; then
			rm -rf $(VENV)
			echo "missing: Python's venv module with pip; on Debian: apt-get install python3-venv" >&2
			exit 1
		fi
	fi
	uv=uv
	if ! uv --version > /dev/null 2>&1; then
		$(BIN)/python -m pip --version > /dev/null 2>&1 || $(BIN)/python -m ensurepip > /dev/null
		$(BIN)/python -m pip install -q --disable-pip-version-check uv
		uv="$(BIN)/python -m uv"
	fi
	echo "installing the packages of requirements.lock into $(VENV)"
	export VIRTUAL_ENV="$$PWD/$(VENV)"
	# Trust what the machine trusts, as pip does: company proxies have certificates of their own.
	if [ -d /etc/ssl/certs ]; then export UV_SYSTEM_CERTS="$${UV_SYSTEM_CERTS:-1}"; fi
	$$uv pip install -q -r requirements.lock
	$$uv pip install -q --no-deps --no-build-isolation -e .
	touch $(STAMP)
