# Every job works on a fresh clone: it makes .venv first, once, and again when pyproject.toml changes.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/ready.stamp
# Without the environment of the peers their places are blank.
BENCH = OMP_NUM_THREADS=2 $(if $(wildcard .venv-peers/bin/python),.venv-peers,.venv)/bin/python
# Two workers on two cores: without this each would start a thread per core. What one process compiled the others read.
PYTEST := OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n 2

.PHONY: help demo test test-all test-compat test-thirdparty test-peers conformance lint docs mutants old-faults bench bench-peers bench-quality clean

help: ## Show this list.
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST)

demo: $(READY) ## Train small networks on the digits with and without the methods (a few minutes on two cores).
	$(BIN)/python examples/digits/demo.py

test: $(READY) ## The quick part of the tests.
	$(PYTEST) -m "not slow and not processes"

test-all: $(READY) ## All tests, those that start processes too; no cell of the conformance suite may stay empty.
	$(PYTEST) --junitxml=build/tests.xml
	$(BIN)/python docs/conformance.py build/tests.xml

test-compat: $(READY) ## The quick tests with the lowest and the newest versions, and without `lightning`; downloads.
	$(BIN)/python -m compat

test-thirdparty: $(READY) ## Modules of published packages under every callback; downloads (PACKAGES="darts gan" for some).
	$(BIN)/python -m thirdparty $(PACKAGES)

conformance: $(READY) ## Every plug-in under everything that the Trainer does; writes docs/conformance.md.
	$(PYTEST) tests/conformance tests/test_conformance.py --junitxml=build/conformance.xml
	$(BIN)/python docs/conformance.py build/conformance.xml docs/conformance.md

lint: $(READY) ## ruff and mypy.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(READY) ## Build the site into docs/site; a public name without a page is an error.
	$(BIN)/python -m docs.gen build/docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

old-faults: $(READY) ## Plant the faults that the library once had, and tell which law or test finds each (40 minutes; NAMES="merge teacher").
	OMP_NUM_THREADS=1 nice -n 10 $(BIN)/python -m mutants --old-faults $(NAMES)

mutants: $(READY) ## Plant small faults and report those that no test sees (20 minutes; FILES="metrics _files/merge.py" COUNT=40 AGAIN=1).
	OMP_NUM_THREADS=1 nice -n 10 $(BIN)/python -m mutants $(if $(COUNT),--count $(COUNT)) $(if $(AGAIN),--again) $(FILES)

test-peers: $(READY) ## Agreement with other libraries, number by number, in the environment of `make bench-peers`.
	OMP_NUM_THREADS=1 .venv-peers/bin/python -m pytest tests/peers

bench: $(READY) ## What each part costs beside its peers: benchmarks/results, docs/performance.md (about half an hour; ROWS="seam swap").
	$(BENCH) -m benchmarks.speed $(ROWS)
	$(BENCH) -m benchmarks.page

bench-peers: $(READY) ## The other libraries that `make bench` measures, in an environment of their own beside .venv.
	$(BIN)/python -m venv .venv-peers
	$(BIN)/python -c "import sysconfig; print(sysconfig.get_path('purelib'))" > .venv-peers/beside
	mv .venv-peers/beside "$$(.venv-peers/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")/beside.pth"
	.venv-peers/bin/python -m pip install --quiet -r benchmarks/peers.txt

bench-quality: $(READY) ## Whether the methods help: the runs that are not there yet, and docs/evidence anew.
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.quality

clean: ## Remove what the other jobs made, but for .venv.
	rm -rf build dist docs/site .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +

$(READY): pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -e ".[dev,docs]"
	touch $@
