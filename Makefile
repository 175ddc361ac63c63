# Everything happens in .venv, which the first call makes. Linux and macOS; on Windows in its WSL.
#   make run TORCH=cpu                    torch without CUDA, 4 GB less; as well for lab and test
#   make test PYTHON=python3.12           another interpreter (.venv is made anew)
#   PYTEST_ADDOPTS="-m slow" make test    the slow tests

# The interpreter .venv has already, else python3, else the version the project is tested with, then the others.
PYTHONS := $(or $(PYTHON),.venv/bin/python python3 python3.11 python3.12 python3.13 python3.14 python3.10)
SUPPORTED := import ensurepip, sys, venv; sys.exit(not (3, 10) <= sys.version_info < (3, 15))
VERSION := import sys; print(sys.version_info[:2])
IN_VENV := .venv/bin/python -m
PIP_INSTALL := pip install --disable-pip-version-check --no-input
# Its build is labeled 2.14.1+cpu: a local label satisfies `torch==2.14.1` and ranks above the same version without one.
CPU_INDEX := https://download.pytorch.org/whl/cpu
FLOOR_STAMP := .venv-floor/.installed
FLOOR_TESTS := tests/model tests/training tests/test_inference.py tests/test_export.py tests/test_chain.py

.PHONY: help run lab test test-floor lint bench clean always
help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /make \1	/p' Makefile

run: .venv/.installed ## the whole chain on a CPU with profile tiny: data, three stages, reports, dashboard
	$(IN_VENV) radvision_utils run --profile tiny

lab: .venv/.with-lab ## the notebooks in JupyterLab
	$(IN_VENV) jupyterlab notebooks/01_data_preparation.ipynb

# Offline: a test that needs the network is a mistake. Two workers, of up to 3 GB each; a module's tests stay together,
# since they share what is costly to make.
test: export HF_HUB_OFFLINE = 1
test: .venv/.with-test ## the fast tests
	$(IN_VENV) pytest -n 2 --dist loadscope --no-loadscope-reorder

test-floor: export HF_HUB_OFFLINE = 1
test-floor: $(FLOOR_STAMP) ## tests of models, training, reports and the chain with the oldest versions, in .venv-floor
	.venv-floor/bin/python -m pytest -n 2 --dist loadscope --no-loadscope-reorder $(FLOOR_TESTS)

lint: .venv/.with-test ## formatting, lint (notebooks too) and types
	$(IN_VENV) ruff format --check .
	$(IN_VENV) ruff check .
	$(IN_VENV) mypy radvision_utils benchmarks

bench: .venv/.with-bench ## speed and memory against what others use, an hour and a half, on a card 20 minutes; writes into benchmarks/
	$(IN_VENV) benchmarks

clean: ## remove .venv and caches; outputs/ stays
	rm -rf .venv .venv-floor build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# A stamp is written last: an interrupted installation is taken up again. An interpreter asked for by name that is
# not the one in .venv makes the first stamp stale.
ifdef PYTHON
ifneq ($(shell $(PYTHON) -c "$(VERSION)" 2>/dev/null || :),$(shell .venv/bin/python -c "$(VERSION)" 2>/dev/null || :))
.venv/.installed: always
endif
endif
.venv/.installed: pyproject.toml constraints.txt
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
	@echo "Installing into .venv: on Linux 3.2 GB to fetch and 6.5 GB of disk, most of it CUDA, which TORCH=cpu leaves out."
	@if [ "$(TORCH)" = cpu ]; then \
	    ask="import urllib.request; urllib.request.urlopen('$(CPU_INDEX)/torch/', timeout=10)"; \
	    if .venv/bin/python -c "$$ask" 2>/dev/null; then index="--extra-index-url $(CPU_INDEX)"; \
	    else echo "$(CPU_INDEX) cannot be reached: torch comes from the usual index."; fi; \
	fi; \
	$(IN_VENV) $(PIP_INSTALL) $$index -c constraints.txt -e '.[dicom]'
	@touch $@

.venv/.with-%: .venv/.installed
	$(IN_VENV) $(PIP_INSTALL) -c constraints.txt -e '.[$*]'
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
	.venv-floor/bin/python -m $(PIP_INSTALL) -c constraints-floor.txt -e '.[test,dicom]'
	@touch $@
