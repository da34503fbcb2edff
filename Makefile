# The ways into this project. `make` builds; only `make setup` installs, and says what.
PYTHON_BIN := .venv/bin
PYTHON := $(PYTHON_BIN)/python
PYTEST := $(PYTHON) -m pytest -q
# What `make lab` runs when it is not told: Linux, and all tests that need KVM, on real KVM. Its machine
# may lock up (tests/lab/run.py), and another goes on where it was. No test there is over sooner
# than a machine that stood still for a minute lets it be.
LAB_TESTS := python -m pytest -q -p no:cacheprovider -p tests.lab.resume -o timeout=480 tests \
	-m '"lab or (kvm and not slow)"'
LAB_OPTIONS ?=

C_FOLDERS := protocol/ring vmm/hypervisor/kvm vmm/hypervisor/software vmm/mediation devices/runtime/files devices/lanes protocol/jail protocol/mapping
# cffi writes the files whose names begin with an underscore.
C_SOURCES := $(shell find $(C_FOLDERS) \( -name '*.[ch]' -o -name build.py \) ! -name '_*')
GUEST_SOURCES := $(shell find tests/kernels -name '*.[chS]' -o -name '*.ld' -o -name build.sh)
SETUP := .venv/setup.stamp
BUILT := .venv/build.stamp

.PHONY: build setup demo demo-bare linux test test-fast lab check bench fuzz soak clean
# Python's bytecode, too: who may not write it beside the source would compile that at each start.
build: $(BUILT)
	@$(PYTHON) -m compileall -q protocol devices vmm launcher tests tools

ifneq ($(shell tools/setup --missing),)
.PHONY: $(SETUP)
endif

setup:
	tools/setup

$(SETUP): pyproject.toml setup.py tools/setup
	tools/setup

# cffi's own compile, used by hand, leaves .cpython files, which the interpreter would prefer.
$(BUILT): $(SETUP) $(C_SOURCES) $(GUEST_SOURCES)
	$(PYTHON) setup.py -q build_ext --inplace --force
	find $(C_FOLDERS) -name '*.cpython-*.so' -delete
	tests/kernels/build.sh
	touch $@

demo: build
	tools/demo linux

demo-bare: build
	tools/demo bare

# The files of a Linux guest, ARCH=amd64 or arm64, to start it by hand.
linux: build
	$(PYTHON) -m tools.linux $(ARCH)

# What needs the host's KVM, or root, one after the other: there is one of each.
test: build
	$(PYTEST) -n 2 -m "not (kvm or root or lab)"
	$(PYTEST) -m "(kvm or root) and not lab"

test-fast: build
	$(PYTEST) -n 2 -m "not (kvm or root or slow or lab)"

lab: build
ifdef CMD
	$(PYTHON) -m tests.lab.run $(LAB_OPTIONS) -- '$(subst ','\'',$(value CMD))'
else
	$(PYTHON) -m tests.lab.run $(LAB_OPTIONS) -- $(LAB_TESTS)
endif

check: build
	$(PYTHON_BIN)/ruff check .
	$(PYTHON_BIN)/ruff format --check .
	$(PYTHON_BIN)/mypy

# Until something is found: TARGET=mediation SECONDS=600; all of them, and a minute each, by default.
fuzz: build
	$(PYTHON) -m tests.fuzz $(TARGET) --seconds $(or $(SECONDS),60)

bench: build
	$(PYTHON) -m tests.perf

# SOAK_OPTIONS='--seed 7 --guest bare', and more (docs/testing.md).
soak: build
	$(PYTHON) -m tests.soak $(SOAK_OPTIONS)

# The virtual environment and the downloaded kernels stay: `rm -rf .venv .cache` for those.
clean:
	rm -rf build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .cache/initramfs .cache/linux
	find $(C_FOLDERS) -name '_*.c' -o -name '*.o' -o -name '*.so' | xargs rm -f
	find protocol devices vmm launcher tests tools -name __pycache__ | xargs rm -rf
	rm -f tests/kernels/*.raw launcher/experiment/*.raw launcher/attack/*.raw tests/kernels/*.elf $(BUILT)
