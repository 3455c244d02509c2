# Two targets are all a newcomer needs:  make demo   make test
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
# Python compiles what is imported when it is: of all that is installed that is a third.
PIP_INSTALL = $(BIN)/pip install --quiet --disable-pip-version-check --no-compile
# Where this is set, each of the tests' many processes would compile all of our modules again.
unexport PYTHONDONTWRITEBYTECODE

# The plain torch wheel for x86 is built for CUDA; without an NVIDIA GPU the constraints pin a CPU build.
ifeq ($(shell uname -m)-$(shell command -v nvidia-smi >/dev/null 2>&1 && echo gpu),x86_64-)
CONSTRAINTS := -c constraints-cpu.txt
endif

# One more than there are cores: tests of daemons and kills wait much of their time.
TESTS_AT_ONCE ?= $(shell echo $$(($$(getconf _NPROCESSORS_ONLN) + 1)))
# Threads of a test would wait in busy loops for those of the test beside it.
test nightly: export OMP_NUM_THREADS ?= 1

.PHONY: venv demo run test frontend browser-test sandbox-tools screenshots nightly check types security bandit audit secret-scan lock sbom format clean install uninstall

venv: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml constraints-cpu.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "reclass-plex needs Python 3.10 or later; set PYTHON=python3.x")'
	$(PYTHON) -m venv $(VENV)
	$(PIP_INSTALL) $(CONSTRAINTS) torch
	$(PIP_INSTALL) $(CONSTRAINTS) -e '.[dev]'
	@touch $@

demo: venv
	$(BIN)/python demo/run.py

# The demo, kept running: daemon and Plex stand-in, until Ctrl-C.
run: venv
	$(BIN)/python demo/run.py --keep

test: venv
	$(BIN)/python -m pytest -n $(TESTS_AT_ONCE) --dist worksteal

# The same with the long forms of some tests.
nightly: venv
	$(BIN)/python -m pytest -n $(TESTS_AT_ONCE) --dist worksteal -m "not browser"

check: venv sandbox-tools
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(MAKE) --no-print-directory -j2 types security test
	$(MAKE) --no-print-directory browser-test

# What the tests of the unit's sandbox need. Without it they are left out, and say so.
sandbox-tools:
	@command -v bwrap >/dev/null && command -v systemd-analyze >/dev/null || { [ "$$(id -u)" = 0 ] \
	  && command -v apt-get >/dev/null && apt-get -qq update \
	  && apt-get -qq install -y --no-install-recommends bubblewrap systemd libseccomp2 >/dev/null; } \
	  || echo "The tests of the sandbox are left out: as root, apt install bubblewrap systemd"

# The dashboard in a real browser, which Debian's apt installs if it is missing and we may.
browser-test: venv
	@command -v chromium >/dev/null || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null \
	  && apt-get -qq update && apt-get -qq install -y --no-install-recommends chromium >/dev/null; } || true
	@if command -v chromium >/dev/null; then $(BIN)/python -m pytest -m browser tests/browser; else \
	  echo "The browser tests were left out: chromium is missing (as root: apt install chromium)"; fi

# What the browser loads, from npm, as package-lock.json names it. The copies are committed.
frontend: venv
	cd frontend && npm ci --ignore-scripts --no-audit --no-fund
	$(BIN)/python frontend/vendor.py

screenshots: venv
	$(BIN)/python demo/screenshots.py

types: venv
	$(BIN)/mypy

# Insecure calls, known vulnerabilities of what the service is installed from, secrets left in files.
security: venv bandit audit secret-scan

bandit: venv
	$(BIN)/bandit --quiet -c pyproject.toml -r reclass_plex service systemd demo benchmarks frontend checks

audit: venv
	$(BIN)/python checks/audit.py

secret-scan: venv
	$(BIN)/python checks/secret_scan.py

# What the service is made of, as CycloneDX: sbom.json. The installer writes one, too.
sbom: venv
	$(BIN)/python systemd/sbom.py sbom.json

# Pins what the service is installed from, by version and hash. UPGRADE=--upgrade takes newer ones.
lock: venv
	$(BIN)/uv pip compile --quiet $(UPGRADE) pyproject.toml -o systemd/requirements.txt
	echo torch | $(BIN)/uv pip compile --quiet --no-config $(UPGRADE) --universal --python-version 3.10 \
		--generate-hashes --no-annotate --custom-compile-command 'make lock' \
		-c systemd/requirements.txt -c constraints-cpu.txt \
		$$(sed -n 's/^\([a-z0-9._-]*\)==.*/--no-emit-package \1/p' systemd/requirements.txt) \
		- -o systemd/requirements-torch.txt

format: venv
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# As root, into /opt. What can be set (PREFIX=, SERVICE_USER=, TORCH=, ...) is in systemd/install.sh.
install uninstall: export PYTHON := $(PYTHON)
install uninstall:
	@sh systemd/install.sh $@

clean:
	rm -rf $(VENV) .demo .mypy_cache .ruff_cache .pytest_cache .hypothesis
