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

.PHONY: demo test check experts-heavy clean

$(VENV)/.done: pyproject.toml constraints.txt
	python3 -m venv $(VENV)
	$(PY) -m pip install -q uv
	$(VENV)/bin/uv pip install -q --compile-bytecode --python $(VENV) $(UVFLAGS) -c constraints.txt -e '.[embed,demo,experts,llm,ocr,slides]' --group dev
	touch $@

# DATA=FOLDER adds the sample data found there to what the demo builds from
demo: $(VENV)/.done
	$(VENV)/bin/medloom demo --home $(HOME_DIR) $(if $(DATA),--data $(DATA))

# nnU-Net, MONAI, torchxrayvision and deepbet, without the dependencies that would replace torch
$(VENV)/.heavy: $(VENV)/.done experts-heavy.txt
	$(VENV)/bin/uv pip install -q --python $(VENV) --no-deps -r experts-heavy.txt
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
