# Needs Python 3.11 and make; everything else is installed into .venv from constraints.txt.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
OFFLINE := HF_HUB_OFFLINE=1

.PHONY: demo test test-slow lint protos tiny bench bench-ddpo soak install clean

install: $(VENV)/installed

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[models,stack,trainer,tiny,dev]'
	touch $@

demo: install  ## start the stack, train for a minute, write a report, stop the stack
	@$(OFFLINE) exec $(BIN)/salon run jobs/ddpo-compressibility-tiny.yaml

# Three at a time on two cores: most tests wait for processes. A file's tests share what they start.
# Without a browser the report's tests are left out, by name.
test: install  ## the whole suite, but for experiments marked slow
	@.ci/browser || true
	$(OFFLINE) OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest -n 3 --dist loadfile -rs --no-fold-skipped

test-slow: install
	$(OFFLINE) $(BIN)/python -m pytest -m slow --timeout 3600

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/buf lint protos

protos: install  ## make the stubs anew after a change of the .proto
	$(BIN)/python -m grpc_tools.protoc -I protos --python_out=. --grpc_python_out=. \
		--mypy_out=. --mypy_grpc_out=. protos/salon/reward/v1/*.proto

tiny: install  ## train the models in models/ from scratch
	$(OFFLINE) $(BIN)/python -m tiny.generator --out models/tiny-sd-digits
	$(OFFLINE) $(BIN)/python -m tiny.clip --out models/tiny-clip-digits
	$(OFFLINE) $(BIN)/python -m tiny.aesthetic --clip models/tiny-clip-digits --out models/tiny-aesthetic-digits
	$(OFFLINE) $(BIN)/python -m tiny.llava --clip models/tiny-clip-digits --out models/tiny-llava-digits
	$(OFFLINE) $(BIN)/python -m tiny.imagereward --clip models/tiny-clip-digits --out models/tiny-imagereward-digits
	$(OFFLINE) $(BIN)/python -m tiny.vgg --out models/tiny-vgg-digits

bench: install  ## speed, beside mosec and LitServe; a quarter of an hour, on a machine with nothing else to do
	$(BIN)/pip install --quiet --constraint constraints.txt --requirement benchmarks/peers.txt
	$(OFFLINE) $(BIN)/python -m benchmarks.serving
	$(OFFLINE) $(BIN)/python -m benchmarks.scoring

bench-ddpo: install .venv-trl/installed  ## DDPO beside TRL's; half an hour, on a machine with nothing else to do
	$(OFFLINE) $(BIN)/python -m benchmarks.ddpo

.venv-trl/installed: benchmarks/trl-peer.txt constraints.txt  # TRL wants an environment of its own
	$(PYTHON) -m venv .venv-trl
	.venv-trl/bin/pip install --quiet --constraint constraints.txt torch
	.venv-trl/bin/pip install --quiet --constraint constraints.txt --requirement benchmarks/trl-peer.txt
	touch $@

soak: install  ## 20,000 requests, some poisoned, some cancelled, services killed twice
	$(OFFLINE) $(BIN)/python -m benchmarks.soak

clean:
	rm -rf $(VENV) .venv-trl .mypy_cache .ruff_cache .pytest_cache .import_linter_cache build *.egg-info
