# make run [ARGS="algorithm=sgd hardware=cpu"]   make test   make check
PYTHON ?= python3
ARGS ?= algorithm=hogwild hardware=numa2
PIP := .venv/bin/python -m pip --disable-pip-version-check

.PHONY: run test check

run: .venv/run
	.venv/bin/python run.py $(ARGS)

# side by side; what fails so, as real workers may that share their cores with other tests, once more alone
test: .venv/test
	.venv/bin/python -m pytest -n 2 --dist loadfile $(ARGS_TEST) || .venv/bin/python -m pytest --last-failed --last-failed-no-failures none $(ARGS_TEST)

check: .venv/dev
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

.venv/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Twinclock needs Python >= 3.11, this is " + sys.version.split()[0])'
	$(PYTHON) -m venv .venv

.venv/run: .venv/bin/python pyproject.toml constraints.txt
	$(PIP) install --quiet -c constraints.txt -e .
	touch $@

.venv/test: .venv/bin/python pyproject.toml constraints.txt
	$(PIP) install --quiet -c constraints.txt -e '.[test]'
	touch $@

.venv/dev: .venv/bin/python pyproject.toml constraints.txt
	$(PIP) install --quiet -c constraints.txt -e '.[dev]'
	touch .venv/run .venv/test $@  # it has what they have
