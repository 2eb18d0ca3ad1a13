# Debian 12, as root: `make demo` tries vtorque, `make test` tests all of it.

PYTHON := /usr/bin/python3
TOOLS := .venv/bin

# What vtorque itself runs on.
RUNTIME := python3 python3-jinja2 python3-libvirt python3-paramiko python3-psutil \
	python3-pycdlib python3-sh python3-yaml qemu-utils openssh-client iproute2 nftables
# What a cluster would have already, and what builds guest images.
LAB := qemu-system-x86 libvirt-daemon-system libvirt-daemon-driver-qemu libvirt-clients \
	dnsmasq-base nfs-ganesha nfs-ganesha-vfs mmdebstrap e2fsprogs fdisk grub-common \
	grub-pc-bin busybox-static bash-static openssh-server cpio lz4 zstd xz-utils kmod procps
TESTING := strace python3-pytest python3-pytest-xdist python3-hypothesis python3-venv python3-jsonschema python3-requests \
	python3-configobj python3-jsonpatch python3-oauthlib slurm-wlm munge pdsh

.DEFAULT_GOAL := help

.PHONY: help
help: ## Say what there is to make
	@sed -n 's/^\([a-z0-9-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 20

.PHONY: deps
deps: ## Install the Debian packages that are missing
	@contrib/install-packages $(RUNTIME) $(LAB)

.PHONY: test-deps
test-deps: deps $(TOOLS)/ruff
	@contrib/install-packages $(TESTING)
	@contrib/make-account

$(TOOLS)/ruff:
	@contrib/install-packages $(TESTING)
	$(PYTHON) -m venv --system-site-packages .venv
	$(TOOLS)/pip install --quiet --disable-pip-version-check ruff mypy types-PyYAML types-psutil types-setuptools

.PHONY: demo
demo: deps ## Run examples/hello.sh in a real guest on this machine
	@$(PYTHON) -I scripts/vmgr lab demo

.PHONY: check
check: $(TOOLS)/ruff ## Check style and types
	$(TOOLS)/ruff check .
	$(TOOLS)/mypy

.PHONY: unit
unit: ## Run the unit tests: no process, no network
	$(PYTHON) -m pytest tests/unit

.PHONY: contract
contract: ## Run the contract tests: the hooks under a mom, backends over fake and real
	$(PYTHON) -m pytest tests/contract

.PHONY: e2e
e2e: ## Run the end-to-end tests: real guests
	$(PYTHON) -m pytest tests/e2e

.PHONY: test
test: test-deps check ## Run everything, real guests included
	$(PYTHON) -m pytest -n 2 --dist loadgroup

.PHONY: bench
bench: ## Measure what vtorque itself costs; STRICT=1 fails for times too, REAL=1 boots real guests as well
	$(PYTHON) -m tests.bench $(if $(STRICT),--strict)
	$(if $(REAL),$(PYTHON) -m tests.bench --real $(if $(STRICT),--strict))

.PHONY: soak
soak: ## Crash anywhere, load, random histories: hours; SEED=n again, EVERY=n for one of n points
	$(PYTHON) -m tests.soak $(if $(SEED),--seed $(SEED)) $(if $(EVERY),--every $(EVERY))

.PHONY: mutation
mutation: ## Say how many wrong validators the tests notice: a quarter of an hour; MODULES="units orders"
	$(PYTHON) -m tests.mutation $(MODULES)

.PHONY: coverage
coverage: test-deps ## Say which branches of the privileged modules no test takes: twenty minutes; TESTS=tests/unit for a part
	@contrib/install-packages python3-coverage
	$(PYTHON) -m tests.coverage $(TESTS)

.PHONY: manual
manual: ## Write man pages and completion anew, from the parsers
	$(PYTHON) -m vtorque.cli.manual doc/man contrib/completion

.PHONY: golden
golden: ## Write the golden files anew; review the difference like code
	$(PYTHON) -m pytest tests/unit/test_render.py --regenerate
	git diff --stat tests/golden
