# A fresh clone needs only make, a Python of 3.11 or newer and a network: every target makes .venv first.
# Linux and macOS; any make.

VENV = .venv
PYTHON = $(VENV)/bin/python
PIP = $(PYTHON) -m pip --disable-pip-version-check
DEMO = runs/demo
WORKERS = 3
DATA = data
BASE = 0
EMOJI = analyses/emoji

.PHONY: advice bases clean demo device docs emoji figures finetuners kills lint nulls papers published study test \
  verdicts wheels

demo: $(VENV)/.installed
	$(VENV)/bin/sharpscope demo --out $(DEMO)

# The pages in docs/, into build/docs/index.html. Tables of words are written anew first; a broken link fails the build.
docs: $(VENV)/.installed-docs
	OMP_NUM_THREADS=1 $(PYTHON) docs/words.py
	$(PYTHON) -m sphinx -q -W --keep-going -n -E -b html docs build/docs
	@echo "build/docs/index.html"

# Every fine-tuning method on the embedded world, side by side: about ten minutes on two quiet cores, resumable.
finetuners: $(VENV)/.installed
	OMP_NUM_THREADS=1 $(PYTHON) analyses/finetuners.py --out runs/finetuners
	$(PYTHON) figures/fig_finetuners.py analyses/results/finetuners.csv --out analyses/results

# The rules that advise an alpha, judged by regret on the embedded world's pairs: about twenty minutes.
advice: $(VENV)/.installed-test
	$(PYTHON) analyses/advice.py

# Every table, figure and protocol of the papers that a command makes, on the embedded world: about half an hour,
# resumable. Writes analyses/papers.md and benchmarks/results/papers.log.
papers: $(VENV)/.installed-test
	$(PYTHON) analyses/papers.py --out runs/papers

# What 28 published paths of real CLIP models say: failure flags, which alpha, what the learning rate tells. Seconds.
published: $(VENV)/.installed-test
	OMP_NUM_THREADS=1 $(PYTHON) analyses/published.py
	$(PYTHON) figures/fig_published.py analyses/results --out analyses/results

# The emoji study, one target a step; analyses/emoji/protocol.md says what is done and why.
# The drawings, by npm, into the folder DATA: about two minutes, 280 MB fetched.
emoji: $(VENV)/.installed-emoji
	OMP_NUM_THREADS=1 $(PYTHON) $(EMOJI)/fetch.py --out $(DATA)

# The five zero-shot models that are not there yet: half an hour of processor time each, resumable.
bases: $(VENV)/.installed
	for seed in 0 1 2 3 4; do \
	  test -f $(EMOJI)/bases/base$$seed.csv || OMP_NUM_THREADS=1 $(PYTHON) $(EMOJI)/pretrain.py \
	    --data-root $(DATA) --seed $$seed --out $(EMOJI)/bases || exit 1; \
	done

# The pairs of one base, 'make study BASE=2': about an hour on two quiet cores, resumable.
study: $(VENV)/.installed
	OMP_NUM_THREADS=1 $(PYTHON) $(EMOJI)/study.py --data-root $(DATA) --base $(BASE)

# The verdicts by the protocol's rules, from the committed tables: about a minute.
verdicts: $(VENV)/.installed
	OMP_NUM_THREADS=1 $(PYTHON) $(EMOJI)/verdicts.py

# The figures of the emoji study and of the published paths, from the committed tables: half a minute.
figures: $(VENV)/.installed
	$(PYTHON) figures/fig_published.py analyses/results --out analyses/results
	$(PYTHON) figures/fig_emoji.py $(EMOJI)/results --out $(EMOJI)/results/figures

# How often sharpscope's conclusions are reached where nothing is, and where something is, by simulation: half an hour.
# Writes benchmarks/results/nulls.log, nulls_repair.log and nulls_stragglers.log.
nulls: $(VENV)/.installed
	OMP_NUM_THREADS=1 $(PYTHON) benchmarks/nulls.py
	OMP_NUM_THREADS=1 $(PYTHON) benchmarks/nulls_repair.py > benchmarks/results/nulls_repair.log
	OMP_NUM_THREADS=1 $(PYTHON) benchmarks/nulls_stragglers.py --layers 8 24 > benchmarks/results/nulls_stragglers.log

# A tiny study that is killed, interrupted and refused by the disk some hundred times and ends with the same bytes each
# time: about five minutes on two quiet cores. Writes benchmarks/results/kills.log.
kills: $(VENV)/.installed
	OMP_NUM_THREADS=1 $(PYTHON) benchmarks/kills.py > benchmarks/results/kills.log

# Wheel and sdist, the wheel in an empty environment of every Python whose libraries are there, and the demo from each:
# ten minutes a Python. LIBRARIES="3.12=FOLDER ..." names site-packages of other Pythons. Writes results/wheels.log.
wheels: $(VENV)/.installed-test
	$(PYTHON) benchmarks/wheels.py --libraries $(LIBRARIES) > benchmarks/results/wheels.log

# Everything that may run on an accelerator, on an emulated one: placement errors and host synchronisations by line. Ten
# minutes. Writes benchmarks/results/device_drive.log.
device: $(VENV)/.installed
	OMP_NUM_THREADS=1 $(PYTHON) tests/device/drive.py --out benchmarks/results/device_drive.log

# One thread a process: test processes share two cores better than threads do, and a third one works while another waits
# for processes that it has started. Compiled modules are kept, whatever the environment says: some fifty tests start a
# Python of their own.
test: $(VENV)/.installed-test lint
	OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE= $(PYTHON) -m pytest -q -n $(WORKERS) --dist loadfile --no-loadscope-reorder

lint: $(VENV)/.installed-test
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports --no-cache

clean:
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache $(DEMO)
	find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +

# Installed once, and again when what is to be installed changed.
$(VENV)/.installed: setup.cfg pyproject.toml $(PYTHON)
	$(PIP) install -q -e .
	@touch $@

$(VENV)/.installed-test: setup.cfg pyproject.toml $(PYTHON)
	$(PIP) install -q -e '.[test]'
	@touch $@ $(VENV)/.installed

$(VENV)/.installed-emoji: setup.cfg pyproject.toml $(PYTHON)
	$(PIP) install -q -e '.[emoji]'
	@touch $@ $(VENV)/.installed

$(VENV)/.installed-docs: setup.cfg pyproject.toml $(PYTHON)
	$(PIP) install -q -e '.[docs]'
	@touch $@ $(VENV)/.installed

# The first Python that is new enough; one that cannot make a virtual environment is passed over.
$(PYTHON):
	@for python in python3 python3.14 python3.13 python3.12 python3.11; do \
	  if $$python -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	    echo "making $(VENV) with $$($$python --version)"; \
	    exec $$python -m venv $(VENV); \
	  fi; \
	done; \
	echo "sharpscope needs Python 3.11 or newer with its venv module; none of python3, python3.11 ... python3.14 is that." >&2; \
	exit 1
