# Two commands are all the set-up there is: `make demo` and `make test`. Each builds the virtual environment if missing.
VENV := .venv
PY := $(VENV)/bin/python
HOME_DIR ?= demo-home
WHEELS := $(or $(PIP_FIND_LINKS),$(shell python3 -m pip config get global.find-links 2>/dev/null))
ifneq ($(strip $(WHEELS)),)
UVFLAGS := --find-links $(WHEELS)
else
UVFLAGS := --torch-backend cpu
endif

.PHONY: demo test check experts-heavy lock clean
EXTRAS := embed demo experts llm ocr slides lake observe lance seg
TORCH := $(shell sed -n 's/.*"\(torch==[0-9.]*\)".*/\1/p' pyproject.toml | head -1)
IMAGE := embed ocr experts slides lake observe lance seg
LOCKS := infra/locks
# Every file is held against the hashes in infra/locks. Three packages come as source; what builds them is locked too.
# torch is apart: which file it is depends on the machine, and a CPU build is not in the index.
LOCKED := --require-hashes --no-deps --only-binary :all: $(addprefix --no-binary ,deid-data jsonpath-rw acvl-utils) \
  --preview-features build-dependency-hashes --require-build-hashes --build-constraints $(LOCKS)/tools.txt
COMPILE := $(VENV)/bin/uv pip compile -q --generate-hashes --no-annotate --no-header --python-version 3.11

$(VENV)/.done: pyproject.toml $(LOCKS)/tools.txt $(LOCKS)/install.txt
	python3 -m venv $(VENV)
	$(PY) -m pip install -q --require-hashes --no-deps --only-binary :all: -r $(LOCKS)/tools.txt
	$(VENV)/bin/uv pip install -q --compile-bytecode --python $(VENV) --no-deps $(UVFLAGS) $(TORCH)
	$(VENV)/bin/uv pip install -q --compile-bytecode --python $(VENV) $(LOCKED) -r $(LOCKS)/install.txt
	$(VENV)/bin/uv pip install -q --python $(VENV) --no-deps --no-build-isolation -e .
	touch $@

# after a change of pyproject.toml, constraints.txt or experts-heavy.txt
lock:
	$(COMPILE) pyproject.toml $(addprefix --extra ,$(EXTRAS)) --group dev -c constraints.txt $(UVFLAGS) --no-emit-index-url --no-emit-find-links --no-emit-package torch -o $(LOCKS)/install.txt
	$(COMPILE) pyproject.toml $(addprefix --extra ,$(IMAGE)) -c constraints.txt $(UVFLAGS) --no-emit-index-url --no-emit-find-links --no-emit-package torch -o $(LOCKS)/image.txt
	$(COMPILE) experts-heavy.txt --no-deps --no-emit-index-url -o $(LOCKS)/heavy.txt
	grep -E '^(uv|setuptools)==' constraints.txt | $(COMPILE) - --no-emit-index-url -o $(LOCKS)/tools.txt

# DATA=FOLDER adds the sample data found there to what the demo builds from
demo: $(VENV)/.done
	$(VENV)/bin/medloom demo --home $(HOME_DIR) $(if $(DATA),--data $(DATA))

# nnU-Net, MONAI, torchxrayvision and deepbet, without the dependencies that would replace torch
$(VENV)/.heavy: $(VENV)/.done $(LOCKS)/heavy.txt
	$(VENV)/bin/uv pip install -q --python $(VENV) $(LOCKED) -r $(LOCKS)/heavy.txt
	touch $@

experts-heavy: $(VENV)/.heavy

check: $(VENV)/.done
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy

# JOBS=1 for one test after the other
JOBS ?= 2
test: check $(VENV)/.heavy
	$(PY) -m pytest -n $(JOBS) --dist loadfile

clean:
	rm -rf $(VENV) demo-home
