# Everything a developer does with forkshim. CI does the same: see .ci/run.
.DEFAULT_GOAL := help
.PHONY: help setup demo lint test check fmt bench soak fuzz conformance deb lock clean

python := .venv/bin/python
coverage := $(python) -m coverage
durations := --durations=12 --durations-min=5
runtime := tests/runtime
engines := tests/engines
others := --ignore=$(runtime)
is_root := $(filter 0,$(shell id -u))

help: ## this list
	@echo 'make TARGET:'
	@sed -n 's/^\([a-z]*\):[^#]*## /\1\t/p' $(MAKEFILE_LIST) | while IFS="$$(printf '\t')" read -r target text; do \
		printf '  %-11s %s\n' "$$target" "$$text"; done

setup: ## install what is missing: Debian packages (as root) and .venv
	@tests/setup/packages base $(if $(is_root),,|| echo 'going on without: tests that need root are left out anyway')
	@tests/setup/venv

demo: setup ## watch one container being supervised, from its start to its exit
	@$(python) tests/demo/demo.py

lint: setup ## ruff, mypy, import-linter
	$(python) -m ruff check
	$(python) -m ruff format --check
	$(python) -m mypy
	.venv/bin/lint-imports --no-logo --cache-dir .cache/importlinter

ifeq ($(strip $(ARGS)),)
test: setup ## all tests, with coverage; make test ARGS='-k fifo -x' for some of them, without
	@tests/setup/packages base release vm engines $(if $(is_root),,>/dev/null || :)
	@rm -rf .cache/coverage
	@mkdir -p .cache
	@# Tests wait most of the time, so three thirds run beside each other; the words of two of them come
	@# at the end. Beside them, what the beds need is made on a fresh machine: a test that needs it
	@# earlier makes it, or waits.
	@$(if $(is_root),$(python) -m tests.systemd.debs,:) >.cache/debs.log 2>&1 & debs=$$!; \
	$(python) -m pytest -m slow $(durations) $(others) --ignore=$(engines) >.cache/slow.log 2>&1 & slow=$$!; \
	{ $(coverage) run -m pytest -m 'not slow' $(durations) $(runtime); quick=$$?; \
	$(python) -m pytest -m slow $(durations) $(runtime) && exit $$quick; } >.cache/runtime.log 2>&1 & runtime=$$!; \
	echo "$(coverage) run -m pytest -m 'not slow'"; \
	$(coverage) run -m pytest -m 'not slow' $(durations) $(others); rest=$$?; \
	$(python) -m pytest -m slow $(durations) $(engines) || rest=$$?; \
	wait $$runtime; runtime=$$?; cat .cache/runtime.log; \
	wait $$slow; slow=$$?; cat .cache/slow.log; \
	wait $$debs || cat .cache/debs.log; exit $$((rest ? rest : runtime ? runtime : slow))
	@$(coverage) combine --quiet
ifeq ($(is_root),)
	@$(coverage) report --fail-under=0
	@echo 'coverage was not judged: without root not every test runs'
else
	@$(coverage) report
endif
else
test: setup
	$(python) -m pytest $(ARGS)
endif

check: lint test ## lint and test

fmt: setup ## reformat, and mend what ruff can mend
	$(python) -m ruff format
	$(python) -m ruff check --fix

bench: setup ## speed and memory, beside others; make bench ARGS='start idle --json FILE'
	@tests/setup/packages bench $(if $(is_root),,|| echo 'going on without: who is missing is not measured')
	@$(python) -m tests.bench $(ARGS)

soak: setup ## random faults for 9 minutes; make soak ARGS='--seconds 3600 --seed 7' for more
	@$(python) -m tests.faults $(ARGS)

fuzz: setup ## malformed engines' messages for 10 minutes; make fuzz ARGS='--seconds 60 --seed 7'
	@$(python) -m tests.fuzz $(ARGS)

conformance: setup ## the engines' tests with the stock shim, too; make conformance ARGS='-k metrics' for some
	@tests/setup/packages base engines
	WITH_STOCK=1 $(python) -m pytest tests/engines $(ARGS)

deb: setup ## build dist/forkshim_VERSION_ARCH.deb, for the Debian release that this machine runs
	@systemd/deb/build

lock: ## choose the newest versions of everything for .venv
	tests/setup/lock --upgrade

clean: ## remove all that make has made here
	rm -rf .venv .cache build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
