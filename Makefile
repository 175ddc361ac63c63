# Everything happens in .venv, which the first call makes. Linux and macOS.
#   make test PYTHON=python3.12           another interpreter (.venv is made anew)
#   PYTEST_ADDOPTS="-m slow" make test    the slow tests

# The interpreter .venv has already, else python3, else the version the project is tested with, then the others.
PYTHONS := $(or $(PYTHON),.venv/bin/python python3 python3.11 python3.12 python3.13 python3.14 python3.10)
SUPPORTED := import ensurepip, sys, venv; sys.exit(not (3, 10) <= sys.version_info < (3, 15))
VERSION := import sys; print(sys.version_info[:2])
STAMP := .venv/.installed
IN_VENV := .venv/bin/python -m
FLOOR_STAMP := .venv-floor/.installed
FLOOR_TESTS := tests/model tests/training tests/test_inference.py tests/test_export.py tests/test_chain.py

.PHONY: help run test test-floor lint bench clean always
help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /make \1	/p' Makefile

run: $(STAMP) ## the whole chain on a CPU with profile tiny: data, three stages, reports, dashboard
	$(IN_VENV) radvision_utils run --profile tiny

# Offline: a test that needs the network is a mistake. Two workers, of up to 3 GB each; a module's tests stay together,
# since they share what is costly to make.
test: export HF_HUB_OFFLINE = 1
test: $(STAMP) ## the fast tests
	$(IN_VENV) pytest -n 2 --dist loadscope --no-loadscope-reorder

test-floor: export HF_HUB_OFFLINE = 1
test-floor: $(FLOOR_STAMP) ## tests of models, training, reports and the chain with the oldest versions, in .venv-floor
	.venv-floor/bin/python -m pytest -n 2 --dist loadscope --no-loadscope-reorder $(FLOOR_TESTS)

lint: $(STAMP) ## formatting, lint (notebooks too) and types
	$(IN_VENV) ruff format --check .
	$(IN_VENV) ruff check .
	$(IN_VENV) mypy radvision_utils benchmarks

bench: $(STAMP) ## speed and memory against what others use, three quarters of an hour; writes benchmarks/RESULTS.md
	$(IN_VENV) pip install --disable-pip-version-check --no-input --quiet -c constraints.txt -e '.[bench]'
	$(IN_VENV) benchmarks

clean: ## remove .venv and caches; outputs/ stays
	rm -rf .venv .venv-floor build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamp is written last: an interrupted installation is taken up again. An interpreter asked for by name that is
# not the one in .venv makes the stamp stale.
ifdef PYTHON
ifneq ($(shell $(PYTHON) -c "$(VERSION)" 2>/dev/null || :),$(shell .venv/bin/python -c "$(VERSION)" 2>/dev/null || :))
$(STAMP): always
endif
endif
$(STAMP): pyproject.toml constraints.txt
	@for python in $(PYTHONS); do \
	    "$$python" -c "$(SUPPORTED)" 2>/dev/null && break; python=; \
	done; \
	if [ -z "$$python" ]; then \
	    echo "No Python 3.10 to 3.14 that can make a virtual environment among: $(PYTHONS)." >&2; \
	    echo "Install one (on Debian and Ubuntu with python3-venv) or name it: make test PYTHON=/path/to/python" >&2; \
	    exit 1; \
	fi; \
	if [ "$$("$$python" -c "$(VERSION)")" != "$$(.venv/bin/python -c "$(VERSION)" 2>/dev/null)" ]; then \
	    echo "Making .venv with $$python ($$("$$python" --version))"; "$$python" -m venv --clear .venv; \
	fi
	$(IN_VENV) pip install --disable-pip-version-check --no-input -c constraints.txt -e '.[test,dicom]'
	@touch $@

$(FLOOR_STAMP): pyproject.toml constraints-floor.txt
	@for python in $(or $(PYTHON),python3.11 python3.10); do \
	    "$$python" -c "import ensurepip, venv" 2>/dev/null && break; python=; \
	done; \
	if [ -z "$$python" ]; then \
	    echo "The oldest versions need Python 3.10 or 3.11: name one, make test-floor PYTHON=/path/to/python" >&2; \
	    exit 1; \
	fi; \
	"$$python" -m venv --clear .venv-floor
	.venv-floor/bin/python -m pip install --disable-pip-version-check --no-input -c constraints-floor.txt -e '.[test,dicom]'
	@touch $@
