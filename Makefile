# `make demo`, `make test` and `make docs` set up all they need in .venv; see README.md.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready
DOCS_READY := $(VENV)/docs-ready
# PyTorch has its own environment, so that `make test` shows that nothing needs it.
PARITY_VENV := .venv-parity
PARITY_READY := $(PARITY_VENV)/ready
# And so have the compilers for accelerators: TARGET=tpu, TARGET=cuda, or both by default.
TARGET ?=
CHIPS_VENV := .venv-chips
CHIPS_READY := $(CHIPS_VENV)/ready-$(or $(TARGET),both)
COMMA := ,
# The page that `make chips` writes.
OUTPUT ?=
IMAGES ?=
DATA ?=
# Tests run in this many processes, file by file in the order of tests/conftest.py.
TESTERS ?= 2
SPREAD = -n $(TESTERS) --dist loadfile --no-loadscope-reorder

# XLA on CPU asks for the same large blocks each step. In large pages that are kept in between, they cost
# hardly any page faults: a sixth of a training step.
export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1:glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=34359738368:glibc.malloc.arena_max=1

define check_python
$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
{ echo "croc_jax needs Python 3.11 or newer; this is $$($(PYTHON) --version). Try: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 1; }
endef

# Installs croc_jax with the extra $(1) into the virtual environment $(2), with the constraints of $(3), too, if given.
define install
test -x $(2)/bin/python || $(PYTHON) -m venv $(2) || exit 1; \
version=$$($(2)/bin/python -c 'import sys; print("%d.%d" % sys.version_info[:2])'); \
options=; for name in constraints $(3); do \
file=constraints/$$name-$$version.txt; test ! -f $$file || options="$$options -c $$file"; done; \
$(2)/bin/python -m pip install --quiet --disable-pip-version-check $$options --editable '.[$(1)]'
endef

.PHONY: demo experiment test parity tpu slow lint types bench chips docs clean

demo: $(READY)
	$(BIN)/python launch/demo.py $(if $(IMAGES),--images="$(IMAGES)")

# EXPERIMENT=settings, own_images, or gpu for one GPU; IMAGES and DATA say where the images and the labeled data sets are.
EXPERIMENT ?= small
experiment: $(READY)
	$(BIN)/python launch/experiment.py --config=configs/experiments/$(EXPERIMENT).py --workdir=runs/experiment-$(EXPERIMENT) \
		$(if $(IMAGES),--images="$(IMAGES)") $(if $(DATA),--data="$(DATA)")

test: $(READY)
	$(BIN)/python -m pytest -q $(SPREAD)

# All files with tests that need PyTorch, transformers or timm, which `make test` skips.
parity: $(PARITY_READY)
	$(PARITY_VENV)/bin/python -m pytest -q $(SPREAD) --installed=torch,transformers,timm \
		$$(grep -rlw torch tests --include='test_*.py')

# Compiles a small step for a TPU, which needs its compiler but no TPU.
tpu: $(CHIPS_VENV)/ready-tpu
	$(CHIPS_VENV)/bin/python -m pytest -q --installed=libtpu tests/tpu

slow: $(READY)
	$(BIN)/python -m pytest -q -m slow

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: $(READY)
	$(BIN)/pyright --pythonpath $(BIN)/python

bench: $(READY)
	$(BIN)/python benchmarks/clustering.py
	$(BIN)/python benchmarks/step.py
	$(if $(IMAGES),$(BIN)/python benchmarks/data.py --images="$(IMAGES)")

# Compiles the training step for TPUs and GPUs that are not there; see docs/scaling.md.
chips: $(CHIPS_READY)
	$(CHIPS_VENV)/bin/python benchmarks/chips.py $(if $(OUTPUT),--output="$(OUTPUT)")

$(READY): setup.cfg pyproject.toml $(wildcard constraints/*.txt)
	@$(check_python)
	@echo "Installing croc_jax into $(VENV), once; this takes a minute or two ..."
	@$(call install,dev,$(VENV))
	@touch $@

docs: $(DOCS_READY)
	$(BIN)/python docs/build.py
	@echo "Open site/index.html in a browser; it needs no server."

$(DOCS_READY): $(READY)
	@$(call install,docs,$(VENV))
	@touch $@

$(PARITY_READY): setup.cfg pyproject.toml $(wildcard constraints/*.txt)
	@$(check_python)
	@echo "Installing croc_jax and PyTorch into $(PARITY_VENV), once; without a CPU build of it, this takes gigabytes ..."
	@$(call install,parity,$(PARITY_VENV))
	@touch $@

$(CHIPS_VENV)/ready-%: setup.cfg pyproject.toml $(wildcard constraints/*.txt)
	@$(check_python)
	@echo "Installing croc_jax and compilers for accelerators into $(CHIPS_VENV), once; those for CUDA take 5 GB ..."
	@$(call install,test$(COMMA)$(subst both,tpu$(COMMA)cuda,$*),$(CHIPS_VENV),accelerators)
	@touch $@

clean:
	rm -rf $(VENV) $(PARITY_VENV) $(CHIPS_VENV) build site *.egg-info
