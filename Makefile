PYTHON ?= python3

demo: .venv/ready ## the main job on drawn pictures: four runs, a table, their pictures
	.venv/bin/python train.py -m data=shapes optim=sgd,adam aug=crop_flip,cutmix \
		name=demo norm=standard batch_size=16 trainer.max_epochs=4

test: lint ## lint, format, types, tests
	.venv/bin/pytest -n auto --dist loadfile

lint: .venv/ready ## lint, format, types
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

test-lowest: .venv/ready ## the tests with the lowest versions that pyproject.toml allows, in a second environment
	.venv/bin/uv venv --quiet --clear --python .venv/bin/python .venv/lowest
	.venv/bin/uv pip install --quiet --compile-bytecode --python .venv/lowest --resolution lowest-direct --editable '.[dev]'
	.venv/lowest/bin/pytest -o filterwarnings=default

test-faults: .venv/ready ## runs killed at 50 random points and at named ones, and their table in docs/faults.md
	CNNLAB_FAULTS=50 .venv/bin/pytest tests/test_resume.py

bench: .venv/ready ## speed against the limit and against what people use today, in one table: make bench SAVE=cpu
	.venv/bin/python benchmarks/table.py $(if $(SAVE),--save $(SAVE))

growth: .venv/ready ## how cost grows with batch, images, jobs and runs: make growth SAVE=growth_cpu
	.venv/bin/python benchmarks/growth.py $(if $(SAVE),--save $(SAVE))

example: .venv/ready ## docs/example: twelve short runs on real pictures and their report; make example FOLDER=...
	.venv/bin/python train.py -m data=image_folder data.root=$(FOLDER) num_train_images=2500 norm=standard \
		model.batch_norm=true batch_size=50 trainer.max_epochs=6 logger=csv name=example \
		optim=sgd_momentum,adam aug=crop_flip,cutmix 'seed=range(3)'
	.venv/bin/python -m cnnlab report outputs/example --out docs/example

study: .venv/ready ## the lab report's figures, redone; make study DATA="data=image_folder data.root=FOLDER"
	.venv/bin/python -m study $(DATA)

board: .venv/ready ## TensorBoard over all runs
	.venv/bin/tensorboard --logdir outputs

sheets: .venv/ready ## docs/aug: what every augmentation does
	for aug in $(basename $(notdir $(filter-out %/none.yaml,$(wildcard conf/aug/*.yaml)))); do \
		.venv/bin/python -m cnnlab show data=shapes data.noise=0 norm=standard aug=$$aug \
			--num 10 --out docs/aug/$$aug.png || exit 1; done

docs: .venv/ready ## the documentation in site/, with its links checked
	.venv/bin/python -m tools.reference
	.venv/bin/zensical build --clean --strict

lock: ## requirements.lock out of pyproject.toml
	.venv/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-annotate \
		--extra dev pyproject.toml --output-file requirements.lock

.venv/ready: requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "cnnlab needs Python 3.11 or newer: make PYTHON=...")'
	test -x .venv/bin/python || $(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --disable-pip-version-check uv==0.13.9
	.venv/bin/uv pip install --quiet --compile-bytecode --python .venv --require-hashes --requirement requirements.lock
	.venv/bin/uv pip install --quiet --python .venv --no-deps --editable .
	touch .venv/ready

.PHONY: demo test lint test-lowest test-faults bench growth example study board sheets docs lock
