# tars-backup: what can be made. GNU make; `make help` lists it.

SHELL := /bin/bash
.DELETE_ON_ERROR:
.DEFAULT_GOAL := build

CARGO ?= cargo

# Tests that need the laboratory (root, an engine, images, servers), those that need root, and the one of a thousand
# damages: all others are quick and run anywhere.
SLOW_TESTS := init units retention seal stores offsite deb package stack tree unpack restore hostile guide interrupt damage demo drill recovery commands
QUICK_TESTS := $(filter-out $(SLOW_TESTS),$(basename $(notdir $(wildcard tests/*.rs))))

SCRIPTS := $(wildcard .ci/run scripts/*.sh tests/*.sh tests/lab/*.sh benches/*.sh packaging/deb/p*)

.PHONY: help
help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 10

.PHONY: build
build: ## the program, optimised
	$(CARGO) build --release --locked

.PHONY: check
check: ## format, lints, and the tests that need neither root nor an engine
	$(CARGO) fmt --check
	$(CARGO) clippy --locked --all-targets -- -D warnings
	if command -v shellcheck >/dev/null; then shellcheck -x $(SCRIPTS); fi
	$(CARGO) test --locked --lib $(QUICK_TESTS:%=--test %)

.PHONY: test
test: ## all tests, as root on Debian: installs what they need, starts the laboratory
	scripts/test.sh

.PHONY: deb
deb: ## the Debian package, below target/debian
	scripts/deb.sh

.PHONY: apt-repo
apt-repo: ## a signed apt repository of that package, below target/apt; APT_KEY names the key
	scripts/apt-repo.sh

.PHONY: demo
demo: ## one backup of a sample home, unpacked and compared; with STACK=1 of a whole stack in Docker, destroyed and restored
	scripts/demo.sh

.PHONY: bench
bench: build ## measure against other tools
	benches/run.sh

.PHONY: deny
deny: ## licences, bans and sources of all crates
	"$$(scripts/tool.sh cargo-deny 0.20.2)" --locked check licenses bans sources

.PHONY: clean
clean: ## remove what was built, and the laboratory with it
	if [ -d target/lab ]; then tests/lab/engine.sh down; fi
	$(CARGO) clean
	rm -rf target
