# The commands of Interlock. `make` alone lists them.
.DEFAULT_GOAL := help
.PHONY: help setup run demo check format lint types layers stale-stubs unit fix test chaos bench \
	images image-locks sbom audit deploy-check footprint screenshots stubs reference
MAKEFLAGS += --no-builtin-rules --no-print-directory
SHELL := /bin/bash
# gRPC's C core writes lines of its own to stderr, and reads this before Python could set it.
export GRPC_VERBOSITY := ERROR

BIN := .venv/bin
# Linux ends the launcher with make, so that a killed make leaves nothing behind either.
INTERLOCK := setpriv --pdeathsig TERM $(BIN)/interlock
# Everything that is Python of ours.
CODE := libs services sandbox tests tools bench deploy

help: ## Print this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## Set up .venv from the hash-pinned lock (needs a network the first time)
	@tools/setup.sh

run: setup ## Start everything and stay; INTERLOCK_PORT=8080, RESET=1 starts over, NANGO=1 installs by it
	@$(INTERLOCK) run $(if $(RESET),--reset) $(if $(NANGO),--nango)

demo: setup ## Drive the whole product without a browser; exit 0 only if all of it worked
	@$(INTERLOCK) demo

check: setup lint types layers stale-stubs unit ## Lint, types, layers, stale stubs, unit tests

lint:
	@$(BIN)/ruff format --check --quiet . || { echo "Run 'make fix'." >&2; exit 1; }
	@$(BIN)/ruff check --quiet .

types:
	@$(BIN)/mypy $(CODE)

layers:
	@$(BIN)/lint-imports --no-logo

stale-stubs:
	@tools/stubs.sh check
	@$(BIN)/python tools/configuration.py check

unit:
	@$(BIN)/pytest --quiet libs services sandbox

fix: setup ## Format, and mend what the linter can mend
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

# Files stay whole, and in order; tests/conftest.py says what else does.
WHOLE := --numprocesses 2 --dist loadfile --no-loadscope-reorder

test: setup ## Run all tests, on two processes, or one file with T=path
	@$(BIN)/pytest $(or $(T),$(WHOLE))

chaos: setup ## Break parts while the product runs; ONLY=name for one fault, SEED=n for one course
	@$(BIN)/python -m tests.chaos $(ONLY) $(SEED)

bench: setup ## Measure; ONLY=name for one; writes bench/results/latest.json
	@$(BIN)/python -m bench $(ONLY)

screenshots: setup ## Take a picture of every page into screenshots/ (needs Chromium)
	@INTERLOCK_REQUIRE=chromium $(BIN)/pytest --quiet tests/e2e/test_path_browser.py

stubs: setup ## Generate the gRPC stubs anew from protos/
	@tools/stubs.sh write

reference: setup ## Write docs/configuration.md anew from the settings
	@$(BIN)/python tools/configuration.py write

images: ## Build the container images (needs Docker); TAG=dev
	@TAG=$(TAG) tools/images.sh

image-locks: setup ## Write the images' lock files anew from requirements.lock
	@$(BIN)/python tools/image_locks.py write

sbom: setup ## List what each image is made of, as CycloneDX, into build/sbom/
	@tools/supply.sh sbom

audit: setup ## Search what the images are made of for known weaknesses (needs a network)
	@tools/supply.sh audit

deploy-check: setup ## Check Dockerfile, compose file and manifests
	@tools/deploy_check.sh

footprint: setup ## Measure the images and write the table of docs/operations.md (needs Docker)
	@$(BIN)/python -m bench.footprint
