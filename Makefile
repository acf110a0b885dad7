# The commands of the project. CI calls `check` and `test` and nothing else (.ci/run).
# Everything fits a machine of two cores; what is missing is installed, or named where that can't be done.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help build run test check fmt audit readme-test contract-test crash-test drain-test power-loss idle-memory measure fuzz fuzz-merge simulate cluster cluster-stop cluster-test

# Where `make run` keeps its data, and further flags for the server: make run ARGS='--listen 127.0.0.1:9000'
DATA ?= ./data
ARGS ?=

help: ## Lists these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

build: ## Builds target/release/posthaste and target/release/loadtest
	@scripts/need.sh cargo cc
	cargo build --release --locked --bin posthaste --bin loadtest

run: build ## Builds, then serves on http://127.0.0.1:8080 with its data in ./data
	target/release/posthaste serve --data $(DATA) $(ARGS)

# Where `make cluster` keeps logs, data and process ids. SMALL=1: one node of Kafka and of Cassandra instead of three each;
# RESTART=0: what ends stays so; LISTEN: address of the load balancer.
CLUSTER ?= cluster
LISTEN ?= 127.0.0.1:8080
# Debian has HAProxy there, which is not in everyone's PATH.
cluster: export PATH := $(PATH):/usr/sbin

cluster: ## Starts Kafka, Cassandra, two of each role and a load balancer, and returns when all are ready; SMALL=1
	@scripts/need.sh cargo cc curl java setpriv haproxy
	cargo build --release --locked --bin posthaste --bin loadtest --bin engines
	@for list in engines/*.jars; do scripts/jars.sh $$list; done
	@target/release/engines cluster start $(CLUSTER) --bin target/release --listen $(LISTEN) \
	  $(if $(filter 1,$(SMALL)),--small) $(if $(filter 0,$(RESTART)),--no-restart)

cluster-stop: ## Ends all that `make cluster` has started
	@scripts/cluster-stop.sh $(CLUSTER)

test: ## Runs every test; each suite prints its time, the last line counts them
	@scripts/need.sh cargo cc c++ curl jq openssl python3 java setpriv haproxy
	@scripts/test.sh

check: ## Format, lints, documentation, its proofs, dependencies (bans, licences, sources, unused ones)
	@scripts/need.sh cargo rustfmt clippy cc c++ cargo-deny cargo-machete
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked -- -D warnings
	RUSTDOCFLAGS='-D warnings' cargo doc --workspace --no-deps --locked
	scripts/post-office.sh
	cargo fetch --locked --quiet
	cargo deny --offline --locked check --hide-inclusion-graph bans licenses sources
	cargo machete

fmt: ## Formats the code
	@scripts/need.sh cargo rustfmt
	cargo fmt --all

audit: ## Looks for advisories against the dependencies (needs the network)
	@scripts/need.sh cargo cargo-deny
	cargo deny --locked check advisories

readme-test: ## Runs the README's examples against a fresh server
	@scripts/need.sh cargo cc curl jq python3
	cargo build --locked --bin posthaste --bin loadtest
	BIN=target/debug scripts/readme-test.sh

contract-test: ## Holds a fresh server against its OpenAPI description with made-up requests; SEED=n repeats a run
	@scripts/need.sh cargo cc curl jq python3
	cargo build --locked --bin posthaste
	BIN=target/debug scripts/schemathesis.sh

drain-test: build ## Stops the server with SIGTERM STOPS times in DURATION seconds under a verified load
	@scripts/need.sh curl jq openssl python3
	BIN=target/release scripts/drain-test.sh

cluster-test: build ## Kills each role, a broker and a node of a cluster with -9 under a verified load, DURATION seconds; ROLL=1, SMALL=1
	@scripts/need.sh curl java jq python3 setpriv haproxy
	cargo build --release --locked --bin engines
	@for list in engines/*.jars; do scripts/jars.sh $$list; done
	BIN=target/release scripts/cluster-test.sh

crash-test: build ## Kills the server with -9 KILLS times in DURATION seconds under a verified load
	BIN=target/release scripts/crash-test.sh

# How often `make power-loss` cuts; SEED=n repeats its choices.
POINTS ?= 200

power-loss: ## Cuts the power POINTS=200 times under load, unsynced writes lost and torn, and judges what is left
	@scripts/need.sh cargo cc
	POINTS=$(POINTS) cargo test --workspace --locked --test power_loss -- --nocapture --test-threads 1

idle-memory: build ## Measures what an idle socket costs the server's memory, plain and over TLS, at USERS=10000
	@scripts/need.sh curl openssl
	BIN=target/release scripts/idle-sockets.sh

# What `make measure` measures: all, kafka, ingest, history or cold-rooms, with further flags (target/release/measure help PART).
PART ?= all

measure: ## Measures PART=all, kafka, ingest, history or cold-rooms beside the engines; FLAGS='--json FILE'
	@scripts/need.sh cargo cc curl java setpriv
	cargo build --release --locked --bin measure --bin posthaste
	@for list in engines/*.jars; do scripts/jars.sh $$list; done
	target/release/measure $(PART) $(FLAGS)

# What `make fuzz` feeds, and for how long: make fuzz TARGET=tokens DURATION=10m
TARGET ?= frames
DURATION ?= 60s

fuzz: ## Looks for input that breaks a law; TARGET=frames, bodies, tokens, records or logs; DURATION=60s
	@scripts/fuzz.sh run $(TARGET) $(DURATION)

fuzz-merge: ## Keeps of what `make fuzz` has found the little that leads everywhere, in fuzz/corpus
	@scripts/fuzz.sh merge

simulate: ## Simulates SEEDS schedules from START on (chance without it); SEED=n replays one and drops faults while it fails
	@scripts/need.sh cargo cc
	cargo build --locked --bin simulate
	target/debug/simulate $(if $(SEED),--seed $(SEED),--seeds $(or $(SEEDS),1000) $(if $(START),--start $(START)))
