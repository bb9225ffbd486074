# The report and its tests. `make` alone lists what there is.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:
.PHONY: help install report publish export experiments replicate readme pdf html assignment test check lab clean

help: ## this list
	@awk -F ' *:.*## ' '/^[a-z]+:.*## / {printf "make %-11s %s\n", $$1, $$2}' Makefile

install: $(INSTALLED) ## create .venv with everything the project needs (the other targets do this by themselves)

$(INSTALLED): constraints.txt settings.ini setup.py
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(v < (3, 10) and \
		"Python 3.10 or newer is needed, and $(PYTHON) is %d.%d: make PYTHON=python3.x" % v[:2])'
	@echo "Setting up .venv: a few minutes, and about 2 GB."
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --disable-pip-version-check --quiet --quiet -c constraints.txt -e '.[dev]'
	@touch $@

report: export ## run the chapters in build/, write report.pdf, show this machine's figures beside the published ones
	$(BIN)/python -m report.run --build
	$(BIN)/python -m report.build --root build --out report.pdf
	@$(BIN)/python -m report.headlines

publish: export ## run all notebooks in place: write figures/, what the notebooks store, README.md and report.pdf
	rm -rf build/kept
	VAE_GMM_KEPT= $(BIN)/python -m report.pretrained
	VAE_GMM_KEPT= $(BIN)/python -m report.run
	$(BIN)/python -m report.readme
	$(BIN)/python -m report.build

export: $(INSTALLED) ## write vae_gmm/ from the notebooks
	IN_TEST= XDG_CONFIG_HOME=.venv $(BIN)/python $(BIN)/nbdev_export

experiments: export ## list the long measurements that the chapters read, with their times
	$(BIN)/python -m experiments

replicate: export ## run one stored measurement again, drawn by the date, and compare (minutes; needs VAE_GMM_DATA)
	$(BIN)/python -m experiments replicate

readme: $(INSTALLED) ## write README.md from nbs/index.ipynb
	$(BIN)/python -m report.readme

pdf: $(INSTALLED) ## build report.pdf from the notebooks as published
	$(BIN)/python -m report.build

html: $(INSTALLED) ## build report.html from the notebooks as published, and explorer.html, a page to draw into
	$(BIN)/python -m report.build --html

assignment: $(INSTALLED) ## write the chapters as an assignment, with and without solutions, to build/assignment: see TEACHING.md
	@$(BIN)/python -m pip install --disable-pip-version-check --quiet --quiet -c constraints.txt -e '.[teaching]'
	@$(BIN)/python -m report.assignment

test: $(INSTALLED) ## check everything; the last line counts passed and failed
	@$(BIN)/python tests/run.py

check: $(INSTALLED) ## the quick part of make test: notebooks, package, README.md and spelling agree
	@$(BIN)/python -m report.check

lab: $(INSTALLED) ## open the notebooks in JupyterLab
	JUPYTER_PREFER_ENV_PATH=1 $(BIN)/python -m jupyterlab nbs

clean: ## remove .venv, trained networks and everything built
	rm -rf .venv build dist *.egg-info .pytest_cache .hypothesis report.pdf report.html explorer.html
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
