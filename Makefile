# The commands of this repository. Everything that they do is in scripts/ and xtask/.

.PHONY: help demo test test-vm lint build

help: ## This list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | expand -t 10

demo: ## Build Berth and run one Harbor task with two agents, from nothing
	@scripts/demo.sh

test: ## All tests; installs what they need
	@scripts/test.sh

test-vm: ## The tests with privileges in a virtual machine: cgroup v2, XFS quotas, Debian's kernel (KERNEL=6.12)
	@scripts/setup.sh vm
	@scripts/vm/test.sh

lint: ## Format, lints, links of the documentation, floors of the house
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --quiet -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --quiet
	cargo xtask layers

build: ## The berth binary, optimised
	cargo build --release --locked -p berth
