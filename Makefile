PYTHON ?= python3

demo: .venv/ready ## twelve short runs on generated images: which optimizer and augmentation is better, and how certain is it?
	.venv/bin/python train.py -m data=shapes data.num_train=1000 data.num_test=500 data.noise=0 data.clutter=0 \
		name=demo norm=standard 'model.channels=[8,16,32]' model.hidden=64 model.batch_norm=true batch_size=25 \
		optim=sgd_momentum,adam optim.lr=0.003 aug=crop_flip,cutmix 'seed=range(3)' trainer.max_epochs=6 \
		launcher=local launcher.jobs_per_device=2

test: lint ## lint, format, types, tests
	.venv/bin/pytest -n auto --dist loadfile

lint: .venv/ready ## lint, format, types
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

test-lowest: .venv/ready ## the tests with the lowest versions that pyproject.toml allows, in another environment
	.venv/bin/uv venv --quiet --clear --python .venv/bin/python .venv/lowest
	.venv/bin/uv pip install --quiet --compile-bytecode --python .venv/lowest --resolution lowest-direct --editable '.[dev]'
	.venv/lowest/bin/pytest -o filterwarnings=default

test-faults: .venv/ready ## kill runs at 50 random points and at fixed ones, and write the table in docs/faults.md
	CNNLAB_FAULTS=50 .venv/bin/pytest tests/test_resume.py

bench: .venv/ready ## a table of speed, compared with the hardware limit and with other programs: make bench SAVE=cpu
	.venv/bin/python benchmarks/table.py $(if $(SAVE),--save $(SAVE))

growth: .venv/ready ## how cost grows with the number of images, jobs and runs and with batch size: make growth SAVE=growth_cpu
	.venv/bin/python benchmarks/growth.py $(if $(SAVE),--save $(SAVE))

example: .venv/ready ## docs/example: twelve short runs on real images and their report; make example FOLDER=...
	.venv/bin/python train.py -m data=image_folder data.root=$(FOLDER) num_train_images=2500 norm=standard \
		model.batch_norm=true batch_size=50 trainer.max_epochs=6 logger=csv name=example \
		optim=sgd_momentum,adam aug=crop_flip,cutmix 'seed=range(3)'
	.venv/bin/python -m cnnlab report outputs/example --out docs/example
	sed 's#\[\([0-9a-f]\{8\}\)\](../../outputs[^)]*)#\1#' docs/example/report.md > outputs/report.md
	mv outputs/report.md docs/example/report.md

study: .venv/ready ## reproduce the figures of the lab report; make study DATA="data=image_folder data.root=FOLDER"
	.venv/bin/python -m study $(DATA)

board: .venv/ready ## TensorBoard for all runs
	.venv/bin/python -m cnnlab board

sheets: .venv/ready ## docs/aug: a figure of every augmentation
	for aug in $(basename $(notdir $(filter-out %/none.yaml,$(wildcard conf/aug/*.yaml)))); do \
		.venv/bin/python -m cnnlab show data=shapes data.noise=0 norm=standard aug=$$aug \
			--num 10 --out docs/aug/$$aug.png || exit 1; done

docs: .venv/ready ## the documentation in site/, with checked links
	.venv/bin/python -m tools.reference
	.venv/bin/zensical build --clean --strict

lock: ## requirements.lock from pyproject.toml
	.venv/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-annotate \
		--extra dev pyproject.toml --output-file requirements.lock

.venv/ready: requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "cnnlab needs Python 3.11 or newer: make PYTHON=...")'
	test -x .venv/bin/pip || $(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --disable-pip-version-check uv==0.13.9
	.venv/bin/uv pip install --quiet --compile-bytecode --python .venv --require-hashes --requirement requirements.lock
	.venv/bin/uv pip install --quiet --python .venv --no-deps --editable .
	touch .venv/ready

.PHONY: demo test lint test-lowest test-faults bench growth example study board sheets docs lock
