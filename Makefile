# What people and machines do with this tree. `make` alone lists it.

CARGO ?= cargo

.PHONY: help build run deb vendor test test-long bench bench-fleet docs lint

help:
	@echo 'make run        build osapi, lay ./osapi into the tree and start it'
	@echo 'make deb        the package, into target/deb; PROFILE=quick in a third of the time'
	@echo 'make test       what this machine allows; a tenth of the storms and sweeps'
	@echo 'make test-long  the same, all of it: 200 kills, every point, 10 power cuts'
	@echo 'make bench      figures, each beside its limit'
	@echo 'make bench-fleet  the same of agents by the thousand, for which it needs a nats-server'
	@echo 'make docs       rewrite the documents that are derived from the code'
	@echo 'make lint       format, clippy, licences and sources of dependencies'

# As optimised as the release, and ready in a third of the time.
build:
	$(CARGO) build --locked --profile quick
	@install -m 755 target/quick/osapi .osapi.new && mv -f .osapi.new osapi

run: build
	@exec ./osapi start

# The package. VERSION is one to give it in place of the changelog's.
deb:
	@mkdir -p target/deb
	debian/rules clean binary TO=target/deb PROFILE=$(or $(PROFILE),release) $(if $(VERSION),VERSION=$(VERSION))
	@ls -l target/deb/*.deb

# The crates, for a build without a network. Not for git.
vendor:
	$(CARGO) vendor --locked --quiet vendor > /dev/null

test:
	tests/run

test-long:
	LONG=1 tests/run

bench:
	$(CARGO) bench --locked --bench figures

bench-fleet:
	$(CARGO) bench --locked --bench fleet

docs:
	UPDATE=1 $(CARGO) test --locked --quiet --test main

lint:
	$(CARGO) fmt --check
	$(CARGO) clippy --locked --all-targets -- -D warnings
	$(CARGO) deny check bans licenses sources
