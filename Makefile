# make demo    the whole study on the miniature world, no cluster: about three minutes on two cores
# make test    install what the tests need, and run them; as root on Debian that is Slurm, too
# make check   ruff and mypy
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test check slurm clean
.DEFAULT_GOAL := demo

demo: $(VENV)/.installed
	$(BIN)/simgap world data/mini
	$(BIN)/simgap submit experiments/mini.yaml --cluster local

test: $(VENV)/.installed-test slurm
	$(BIN)/python -m pytest -n 2

check: $(VENV)/.installed-test
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

$(VENV)/.installed: setup.cfg pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "simgap needs Python 3.10 or later, this is " + sys.version)'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -e .
	touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[test]'
	touch $@

# The tests of the cluster run on a real Slurm; without it they say so and are skipped.
slurm: $(VENV)/.installed-test
	@packages="$$($(BIN)/python -c 'from hpc.minislurm import missing_packages; print(*missing_packages())')"; \
	if [ -n "$$packages" ] && [ "$$(id -u)" = 0 ] && command -v apt-get > /dev/null; then \
		echo "installing $$packages"; \
		apt-get update -qq; \
		DEBIAN_FRONTEND=noninteractive apt-get install -qq --no-install-recommends $$packages > /dev/null; \
	fi || echo "could not install $$packages"

clean:
	rm -rf $(VENV) build *.egg-info
