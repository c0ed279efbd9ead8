# Everything from an empty machine with Python >= 3.11, make and git:
#   make all                    the embedded data set: generated, trained on, scored, reported on
#   make all DATASET=referit    another one; data/README.md says where its files go
#   make test                   the tests

DATASET   = shapes
DATA_ROOT = data
RUNS      = runs
CONFIG    =
PYTHON    = python3
# Rows of a table that are made at once: two trainings of one thread each take less time than one after the other of two.
JOBS      = 2
OPTIONS   = --dataset "$(DATASET)" --data-root "$(DATA_ROOT)" --runs "$(RUNS)" $(if $(CONFIG),--config "$(CONFIG)")
RIS       = .venv/bin/ris
READY     = .venv/ready

.PHONY: all best install docs data sets compare tables oracle clip status check lint test test-slow test-endurance test-gpu test-browser clean

# The whole chain, its scores and the report on it; what is up to date is skipped, with the reason.
all: data
	$(RIS) train-step1 $(OPTIONS)
	$(RIS) dump-responses $(OPTIONS)
	$(RIS) make-pseudolabels --no-refine $(OPTIONS)
	$(RIS) make-pseudolabels --refine $(OPTIONS)
	$(RIS) train-step2 $(OPTIONS)
	$(RIS) score $(OPTIONS)
	$(RIS) report $(OPTIONS)

# Better masks than the paper's, after `make all`: docs/beyond.md. On shapes the last round trains twice as long.
best: data
	$(RIS) make-pseudolabels --refine --preset best $(OPTIONS)
	$(RIS) train-step2 $(OPTIONS)
	$(RIS) make-pseudolabels --round 2 --preset best $(OPTIONS)
	$(RIS) train-step2 --round 2 $(if $(filter shapes%,$(DATASET)),--set epochs=12) $(OPTIONS)
	$(RIS) score --stage pseudolabels $(OPTIONS)
	$(RIS) score --stage step2 $(OPTIONS)

# The data set: generated where it is the embedded one, then checked against its card.
data: $(READY)
ifneq ($(filter shapes%,$(DATASET)),)
	$(RIS) data make-shapes $(OPTIONS)
endif
	$(RIS) data check $(OPTIONS)

# The methods that the paper compares TRIS with, after `make all`: the rows of Table 1 on this data set, and the report.
compare: $(READY)
	$(RIS) experiment 1 --jobs $(JOBS) $(TABLES); made=$$?; \
	$(RIS) table 1 $(TABLES) && $(RIS) report $(OPTIONS) && exit $$made

# The paper's tables, figures and the curves of Tables 4 and 5: on the embedded data sets, or with DATASET=refcocog-umd on
# that. The pictures are in runs/figures/. A row that fails stops neither its own table, of what is there, nor the
# others; make fails at the end.
TABLES = $(if $(filter-out shapes,$(DATASET)),--dataset "$(DATASET)") --data-root "$(DATA_ROOT)" --runs "$(RUNS)" $(if $(CONFIG),--config "$(CONFIG)")

tables:
	@$(MAKE) --no-print-directory --keep-going table-1 table-2 table-3 table-4 table-5 table-6 table-7 \
	    figure-1 figure-2 curve-4 curve-5

table-%: sets
	$(RIS) experiment $* --jobs $(JOBS) $(TABLES); made=$$?; \
	$(RIS) table $* $(TABLES) --format markdown && exit $$made

figure-%: sets
	@mkdir -p "$(RUNS)/figures"
	$(RIS) experiment figure$* --jobs $(JOBS) $(TABLES); made=$$?; \
	$(RIS) figure qualitative figure$* --out "$(RUNS)/figures/figure$*.png" $(TABLES) && exit $$made

curve-%: table-%
	@mkdir -p "$(RUNS)/figures"
	$(RIS) figure sweep $* --out "$(RUNS)/figures/curve$*.png" $(TABLES)

# The embedded data sets, where it is one of them.
sets: $(READY)
ifneq ($(filter shapes%,$(DATASET)),)
	for name in shapes shapes+ shapesg; do $(RIS) data make-shapes --dataset $$name --data-root "$(DATA_ROOT)" || exit; done
endif

# The upper bound: Step-2 on true masks, and its scores.
oracle: data
	$(RIS) train-step2 --oracle $(OPTIONS)
	$(RIS) score --stage step2 $(OPTIONS)

# The small CLIP of the embedded data set, trained anew.
clip: $(READY)
	$(RIS) pretrain-clip --precision bf16 $(OPTIONS)

# Which artifacts are fresh, stale or missing.
status: $(READY)
	$(RIS) status $(OPTIONS)

# All that a change has to pass.
check: lint test

# Style and types.
lint: $(READY)
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

# The default tests, on all cores; a file's tests share what is made for them.
test: $(READY)
	.venv/bin/python -m pytest -n auto --maxprocesses 8 --dist loadfile

# The tests that take minutes.
test-slow: $(READY)
	.venv/bin/python -m pytest -m "slow and not gpu"

# Kills at random moments, a quarter of an hour of them; CI does not run it.
test-endurance: $(READY)
	.venv/bin/python -m pytest -s -m endurance

# The tests that need a CUDA device.
test-gpu: $(READY)
	.venv/bin/python -m pytest -m gpu

# Report and demo in a headless Chromium, which has to be installed already; skipped where it is not.
test-browser: .venv/browser
	.venv/bin/python -m pytest -m browser

.venv/browser: $(READY)
	.venv/bin/python -m pip install --quiet -c constraints.txt -e '.[dev,browser]'
	@touch $@

# The environment alone.
install: $(READY)

# The virtual environment. One pip command: torch and torchvision have to come from one resolution.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	    || { echo "$(PYTHON) is missing or older than 3.11: make PYTHON=/path/to/python3.11"; exit 1; }
	@$(PYTHON) -m venv .venv \
	    || { echo "$(PYTHON) cannot make virtual environments: install its venv package (Debian: python3-venv)"; exit 1; }
	@echo "installing torch and what else is needed into .venv: about 6 GB on the disk, two minutes on a fast network"
	.venv/bin/python -m pip install --quiet -c constraints.txt -e '.[dev,demo,tensorboard]'
	@touch $@
	@echo "done; for the commands: . .venv/bin/activate"

# The reference of the library, from its docstrings: build/docs/index.html.
docs: $(READY)
	.venv/bin/python -m pip install --quiet -c constraints.txt -e '.[docs]'
	.venv/bin/python -m pdoc --docformat markdown --output-directory build/docs ris_pipeline

# Environment and caches; data and runs stay.
clean:
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis
