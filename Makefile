# demo, test, setup, bench, check, kafka, docs: every one of them prepares .venv first, which takes no time when it is there.
.PHONY: demo test setup bench check kafka docs
.NOTPARALLEL:

# Tests and demo start hundreds of processes. Where the environment forbids byte code, each would compile the package anew.
export PYTHONDONTWRITEBYTECODE =

demo: setup
	@.venv/bin/agl demo

# Two at a time: many tests wait for processes and brokers, others measure pauses, which a busy machine would blur.
test: setup
	@.venv/bin/python -m pytest -q -n 2 --dist worksteal -m "not alone"
	@.venv/bin/python -m pytest -q -m alone

setup: .venv/.ready

# REFERENCE_PYTHON=/path/to/python (with agentlightning==0.3.0) adds the reference, GROWTH=5 ends at 10^5 rollouts, and RECORD=1
# keeps the figures in tests/benchmarks/measured.json.
bench: setup
	@.venv/bin/python -m tests.benchmarks

# A real broker on this machine from Java and Maven, until Ctrl+C; KAFKA="--brokers 3 --dir data" passes options.
kafka: setup
	@.venv/bin/python deploy/kafka-local/kafka_local.py $(KAFKA)

# The site of docs/ in build/docs; a warning, such as a link that leads nowhere, is an error.
docs: setup
	@NO_MKDOCS_2_WARNING=1 .venv/bin/mkdocs build --strict

check: setup
	@.venv/bin/ruff check .
	@.venv/bin/pyright
	@$(MAKE) --no-print-directory test

# The one rule with a file: it runs again when the lock, the package's metadata or the set-up itself changed.
.venv/.ready: constraints.txt pyproject.toml .ci/setup
	@.ci/setup
