# make quickstart   a first federated run, on this machine          make test    every test
# make check        format, lint, types and the quick tests         make format  rewrite files as `check` wants them
# make hashes       what `pip install --require-hashes` takes, for this Python on this machine: two files, here
# make release      source archive, wheel, list of packages and their sums, of the commit; see RELEASING.md
# make site         documentation: pages in SITE, every link followed, every block and both notebooks run
# make loggers      the tests of Weights & Biases, MLflow and Trackio, offline, in an environment of their own beside VENV
# make architectures   one tiny round of every architecture of model with four strategies: what works, a line for each
#
# All of it happens in a virtual environment of its own, made when it is not there and brought up to date when the
# sources, pyproject.toml or constraints.txt have changed. What runs is the installed package, not the checkout.
#
# PYTHON   which Python makes the environment                       VENV    where it lies
# OUT      run folder of the quickstart; empty: a new one under fedft-runs/      EXTRAS  of fedft, for the hashes
# KEY      an SSH key that signs the release                        DIST    the release's folder, new or empty
# SITE     folder of the documentation's pages

PYTHON ?= python3
VENV ?= .venv
OUT ?=
EXTRAS ?=
KEY ?=
DIST ?= dist
SITE ?= site

BIN := $(abspath $(VENV))/bin
PIP := $(BIN)/python -m pip --quiet --quiet --disable-pip-version-check
ROOMS := fedft server client strategies simulations benchmarks
SOURCES := pyproject.toml constraints.txt README.md LICENSE \
	$(shell find $(ROOMS) -name '*.py' -o -name '*.toml') fedft/py.typed
# What setuptools left of an earlier build would come back in this one, deleted files included.
INSTALL = echo "installing into $(VENV) (minutes the first time)" && rm -rf build/lib build/bdist.* && \
	$(PIP) install --constraint constraints.txt

.PHONY: quickstart test check lint format site architectures loggers hashes release
.DELETE_ON_ERROR:

quickstart: $(VENV)/.fedft
	$(BIN)/fedft simulate $(if $(OUT),--out "$(OUT)")

test: $(VENV)/.fedft-test
	$(BIN)/pytest

architectures: $(VENV)/.fedft-test
	$(BIN)/python tests/cases/arch_matrix.py

# -P: what runs is the installed package here, too, and not the checkout.
loggers: $(VENV)-loggers/.fedft-loggers
	"$(VENV)-loggers/bin/python" -P -m pytest -n 0 tests/reports/loggers/test_trackers.py

check: lint
	$(BIN)/pytest -m "not slow"

# Types are checked on the installed package, from outside the checkout: started here, mypy would pass over the rooms
# that stand beside fedft/ without a word.
lint: $(VENV)/.fedft-test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	cd "$(VENV)" && bin/mypy --package fedft --config-file "$(CURDIR)/pyproject.toml"

format: $(VENV)/.fedft-test
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

site: $(VENV)-site/.made
	NO_MKDOCS_2_WARNING=1 "$(VENV)-site/bin/mkdocs" build --quiet --strict --site-dir "$(abspath $(SITE))"
	FEDFT_SITE="$(abspath $(SITE))" "$(VENV)-site/bin/python" -P -m pytest tests/docs

hashes: | $(BIN)/python
	$(BIN)/python release/hashes.py $(EXTRAS:%=--extra %)

release: $(VENV)/.fedft
	$(BIN)/python release/build.py --to "$(DIST)" $(if $(KEY),--key "$(KEY)")

$(BIN)/python:
	$(PYTHON) -m venv "$(VENV)"

# So that what the README's commands make stays small. It sees the packages of the tests' environment behind its own.
$(VENV)-loggers/.fedft-loggers: tests/reports/loggers-requirements.txt $(VENV)/.fedft-test
	@$(PYTHON) -m venv "$(VENV)-loggers"
	@purelib='import sysconfig; print(sysconfig.get_path("purelib"))' && \
	$(BIN)/python -c "$$purelib" > "$$("$(VENV)-loggers/bin/python" -c "$$purelib")/tests.pth"
	@"$(VENV)-loggers/bin/python" -m pip --quiet --quiet --disable-pip-version-check install --no-deps --requirement $<
	@touch $@

$(VENV)/.fedft: $(SOURCES) | $(BIN)/python
	@$(INSTALL) .
	@touch $@

$(VENV)/.fedft-test: $(SOURCES) | $(BIN)/python
	@$(INSTALL) ".[test,kernels]"
	@touch $@ $(VENV)/.fedft

# As the loggers': what only the site needs stays out of the first environment. pip sees what that one holds.
$(VENV)-site/.made: docs/requirements.txt $(VENV)/.fedft-test
	@$(PYTHON) -m venv "$(VENV)-site"
	@purelib='import sysconfig; print(sysconfig.get_path("purelib"))' && \
	$(BIN)/python -c "$$purelib" > "$$("$(VENV)-site/bin/python" -c "$$purelib")/tests.pth"
	@"$(VENV)-site/bin/python" -m pip --quiet --quiet --disable-pip-version-check install \
		--constraint constraints.txt --requirement docs/requirements.txt
	@touch $@
