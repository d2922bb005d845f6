# Needs python3 (3.11 or newer) and nothing else: each target makes the environment it runs in.
#   make demo                    make test PYTHON=python3.12
#   make demo KILL=1 (WAIT=1)    make demo STORE=sqlite:PATH (or redis, temporal: one of its own, or its address)

PYTHON      ?= python3
ENVIRONMENT ?= .venv
ENV         := $(ENVIRONMENT)/bin/python
DEMO        := .venv-demo/bin/python

# A file's tests stay in one process, with their servers; files come in the order of tests/conftest.py. No new process for one
# that dies: see tests/limits.py.
PARALLEL := --numprocesses=auto --maxprocesses=4 --dist=loadfile --no-loadscope-reorder --max-worker-restart=0

# Where Prometheus and Alertmanager are unpacked, if they are not on PATH.
SERVERS := $(CURDIR)/.venv-servers/usr/bin

# The environments are complete; a caller's own paths would only slip other code into them. Without bytecode on disk, each
# of the hundreds of processes that the tests start would compile flowcore again.
unexport PYTHONPATH PYTHONHOME VIRTUAL_ENV PYTHONDONTWRITEBYTECODE

.NOTPARALLEL:
.PHONY: help demo test test-all proof lint types mypy pyright format bench storm fleet dashboards dist docs clean venv venv-demo servers lock

help:  ## list these targets
	@sed -n 's/^\([a-z-]*\):.*  ## \(.*\)/make \1|\2/p' Makefile | while IFS='|' read -r target what; do \
		printf '%-15s%s\n' "$$target" "$$what"; done

demo: venv-demo  ## run the checkout service on a few hundred orders (SERVE=1 keeps it running, KILL=1 kills it in the middle, WAIT=1 has an order wait)
	@$(DEMO) examples/service/demo.py $(if $(SERVE),--serve) $(if $(KILL),--kill) $(if $(WAIT),--wait) $(if $(STORE),--store='$(STORE)')

test:  ## lint, check types, run the tests with coverage
	@.ci/together venv servers
	@.ci/together lint mypy pyright
	PATH="$(SERVERS):$$PATH" $(ENV) -m pytest --cov $(PARALLEL) --durations=15 --durations-min=2
	@report=$$($(ENV) -m coverage report --fail-under=98) \
		|| { echo "$$report"; echo '98 % of the lines and branches of flowcore/_kernel and flowcore/_durable must be covered.'; exit 1; }

test-all:  ## the same on each of Python 3.11, 3.12 and 3.13 that is here, on PATH or in pyenv
	@.ci/test-all

proof: venv servers  ## the tests with all seeds, mutants and crashes, not only the share that each change must pass
	PATH="$(SERVERS):$$PATH" $(ENV) -m pytest --proof=full $(PARALLEL) --durations=15

lint: venv  ## ruff: rules and formatting; bandit and detect-secrets: what must not be in the code
	$(ENV) -m ruff check
	$(ENV) -m ruff format --check
	@# B301 and B608 are ruff's S301 and S608, and each line that unpickles or builds SQL answers those with its reason.
	$(ENV) -m bandit --quiet --recursive --severity-level medium --skip B301,B608 flowcore flowcore_otel
	@# 3: what is known stands on another line now, and the baseline says so again.
	@$(ENVIRONMENT)/bin/detect-secrets-hook --baseline .ci/secrets.json $$(git ls-files ':!.ci/secrets.json') || test $$? -eq 3

types: mypy pyright  ## mypy and pyright, both strict

mypy: venv  # in CI each clone is new, and what is cached would never be read
	$(ENV) -m mypy $(if $(filter true,$(CI)),--cache-dir=/dev/null)

pyright: venv
	$(ENV) -m pyright --pythonpath $(ENV)

format: venv  ## let ruff fix and format
	$(ENV) -m ruff check --fix
	$(ENV) -m ruff format

storm: venv  ## fuzz records for five minutes; kill, freeze, deploy and cut off processes and servers until 100,000 durable runs are over
	$(ENV) -m tests.security.fuzz --minutes 5
	$(ENV) -m pytest tests/durable/long_outages.py
	$(ENV) -m tests.durable.storm

fleet: venv  ## four processes under load on a Redis Cluster: killed, stopped, added, and a primary killed; what callers saw
	$(ENV) -m tests.durable.fleet

bench: venv  ## run the benchmarks
	$(ENV) -m tests.benchmarks

dashboards: venv servers  ## rebuild the dashboards, their rules and their pictures
	$(ENV) dashboards/build.py
	PATH="$(SERVERS):$$PATH" $(ENV) -m tests.dashboards.pictures

docs: venv  ## build the documentation site into .site/site
	@NO_MKDOCS_2_WARNING=1 $(ENV) .ci/docs.py

dist: venv  ## build the wheel and the sdist, twice, and check that both times give the same files
	rm -rf dist build && SOURCE_DATE_EPOCH=1767225600 $(ENV) -m hatchling build -d build/again >/dev/null
	SOURCE_DATE_EPOCH=1767225600 $(ENV) -m hatchling build -d dist >/dev/null
	cd dist && sha256sum * | (cd ../build/again && sha256sum --check --quiet) && cd .. && rm -rf build
	$(ENV) -m twine check --strict dist/*

clean:  ## remove environments, caches and build output
	rm -rf .venv .venv-* .mypy_cache .pytest_cache .ruff_cache .hypothesis .coverage htmlcov build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# LOCKED=1: the tools of .ci/tools.lock alone, checked against its checksums; enough for lint and dist.
venv:
	@$(call make-env,$(ENVIRONMENT),$(if $(LOCKED),tools,dev))

lock:  ## write .ci/tools.lock anew, with uv
	@sed -n '/^#/p' .ci/tools.lock > .ci/tools.lock.new
	uv pip compile pyproject.toml --group tools --universal --python-version 3.11 --generate-hashes --no-header \
		--no-annotate --no-emit-index-url --upgrade >> .ci/tools.lock.new && mv .ci/tools.lock.new .ci/tools.lock

venv-demo:
	@$(call make-env,.venv-demo,demo)

servers:
	@.ci/servers .venv-servers

# Isolated (-I): the script sees the standard library alone, whatever the caller has set.
make-env = $(PYTHON) -ISc '' 2>/dev/null \
	|| { echo 'flowcore needs Python 3.11 or newer, and $(PYTHON) does not run here.' >&2; exit 1; }; \
	$(PYTHON) -I .ci/bootstrap.py $(1) $(2)
