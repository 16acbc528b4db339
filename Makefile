# What this workshop can do: `make` lists it. Everything sets up what it needs in $(VENV) by itself.
PYTHON ?= python3
VENV ?= .venv
RUN := $(VENV)/bin/python
COMPOSE ?= docker compose
PROFILE ?= sqlite
DATABASE ?= sqlite
SECONDS ?= 60
SEED ?= 1

help: ## Show this list
	@awk -F ':.*## ' '/^##@/ {printf "\n%s\n", substr($$0, 5)} /^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

##@ Using it

run: $(VENV)/ready ## Start the whole system with the sandbox in place of the providers; Ctrl-C drains it
	@$(RUN) -m launch

demo: $(VENV)/ready ## Play a confirmation, a payment, its webhook, the receipt and the text (about 10 s)
	@$(RUN) -m launch.demo

up: $(VENV)/ready ## Build and start the containers and play the demo against them; PROFILE=postgres: two of each
	@COMPOSE="$(COMPOSE)" $(RUN) -m launch.up $(PROFILE)

##@ Proving it

chaos: $(VENV)/ready ## Kill and freeze at random under load, then judge: DATABASE=sqlite|postgres SECONDS=60 SEED=1 KILLS= FOLDER= REPORT=
	@$(RUN) -m chaos --database $(DATABASE) --seconds $(SECONDS) --seed $(SEED) $(if $(FOLDER),--folder $(FOLDER)) $(if $(KILLS),--kills $(KILLS)) $(if $(REPORT),--report $(REPORT))

failover: $(VENV)/ready ## Kill the primary of three PostgreSQL nodes under load (Debian: patroni, etcd-server): SECONDS=300 SEED=1
	@$(RUN) -m failover --seconds $(SECONDS) --seed $(SEED) $(if $(REPORT),--report $(REPORT))

bench: $(VENV)/ready ## Measure beside peers, in interleaved rounds: PART=webhooks|sms|payments|queue|lateness|footprint|overload REPORT=
	@$(RUN) -m bench $(if $(PART),--part $(PART)) $(if $(REPORT),--report $(REPORT))

##@ Changing it

test: $(VENV)/ready ## Run every test, on SQLite and, where its binaries are found, on PostgreSQL: PYTHON=python3.13 VENV=.venv-3.13
	@$(RUN) -m pytest -n 4 --dist loadscope

check: $(VENV)/ready ## Format, lint, types, and contracts that are up to date
	@$(RUN) -m ruff format --check --quiet . || { echo "make format mends this"; exit 1; }
	@$(RUN) -m ruff check --quiet .
	@$(RUN) -m mypy
	@$(VENV)/bin/buf lint protos
	@$(VENV)/bin/buf format --diff --exit-code protos
	@protos/generate
	@git diff --exit-code --stat -- protos || { echo "commit what make protos writes"; exit 1; }

format: $(VENV)/ready ## Format the code and the contracts
	@$(RUN) -m ruff format --quiet .
	@$(RUN) -m ruff check --quiet --fix .
	@$(VENV)/bin/buf format --write protos

protos: ## Regenerate the contracts' Python, beside each .proto
	protos/generate

lock: ## Write requirements/*.txt anew from pyproject.toml (needs uv)
	requirements/lock

$(VENV)/ready: requirements/dev.txt protos/pyproject.toml
	@requirements/install $(PYTHON) $(VENV)

.PHONY: help run demo up chaos failover bench test check format protos lock
.DEFAULT_GOAL := help
