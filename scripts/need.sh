#!/usr/bin/env bash
# Makes sure that the named tools are there: installs what is missing, or says what to install.
# Usage: scripts/need.sh TOOL…
set -euo pipefail

# Versions that are known to work with this repository; a newer one that is installed already is fine.
CARGO_DENY=0.20.2
CARGO_MACHETE=0.9.2
# Exactly this one: each version makes other requests of the same seed.
SCHEMATHESIS=4.32.5

missing() {
  echo "missing: $1. $2" >&2
  exit 1
}

have() { command -v "$1" >/dev/null 2>&1; }

apt() { # tool, packages…
  local tool=$1
  shift
  local sudo=
  [ "$(id -u)" = 0 ] || sudo=sudo
  if have apt-get && { [ -z "$sudo" ] || have sudo; }; then
    echo "installing $* (for $tool)" >&2
    $sudo apt-get install -y -qq "$@" >&2 || { $sudo apt-get update -qq >&2 && $sudo apt-get install -y -qq "$@" >&2; }
  fi
  have "$tool" || missing "$tool" "Install it with your system's packages (Debian: apt-get install $*)."
}

# A tool of our own use: quick to build matters more than quick to run.
cargo_tool() { # name, version
  have "$1" && return
  echo "installing $1 $2 (once, some minutes)" >&2
  CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16 CARGO_PROFILE_RELEASE_OPT_LEVEL=1 \
    cargo install --locked --version "$2" "$1" >&2 || missing "$1" "Install it: cargo install --locked --version $2 $1"
}

# A tool from PyPI, in a virtual environment of its own: target/NAME/bin/NAME.
python_tool() { # name, version
  local at
  at=$(dirname "$0")/../target/$1
  [ "$(cat "$at/version" 2>/dev/null)" = "$2" ] && return
  echo "installing $1 $2 into target/$1" >&2
  rm -rf "$at"
  if have uv; then
    uv venv -q "$at" >&2 && uv pip install -q --python "$at/bin/python" "$1==$2" >&2
  else
    { python3 -m venv "$at" || { apt python3 python3-venv && python3 -m venv "$at"; }; } >&2 &&
      "$at/bin/pip" install -q --disable-pip-version-check "$1==$2" >&2
  fi || missing "$1" "It comes from PyPI, for Python 3.10 or newer: python3 -m venv target/$1 && target/$1/bin/pip install $1==$2"
  echo "$2" >"$at/version"
}

component() { # cargo subcommand, rustup component
  cargo "$1" --version >/dev/null 2>&1 && return
  have rustup || missing "$2" "Install Rust through https://rustup.rs, or your system's package of $2."
  rustup component add "$2" >&2 || missing "$2" "Install it: rustup component add $2"
}

# rustup puts its programs there; a shell opened before does not know yet.
[ -d "$HOME/.cargo/bin" ] && PATH="$HOME/.cargo/bin:$PATH"

for tool in "$@"; do
  case $tool in
    cargo) have cargo || missing "Rust" "Install it through https://rustup.rs; rust-toolchain.toml names the version." ;;
    rustfmt) component fmt rustfmt ;;
    clippy) component clippy clippy ;;
    cc) # SQLite and librdkafka are compiled in; that needs OpenSSL's headers, make and a C++ compiler too
      have cc || apt cc gcc libc6-dev
      have c++ || apt c++ g++
      have make || apt make make
      have pkg-config || apt pkg-config pkg-config
      pkg-config --exists openssl || apt pkg-config libssl-dev
      pkg-config --exists openssl || missing "OpenSSL's headers" "Install them (Debian: apt-get install libssl-dev)."
      ;;
    c++) have c++ || apt c++ g++ ;; # libFuzzer is compiled in where the fuzz targets are
    java) have java || apt java openjdk-17-jdk-headless ;; # Kafka and Cassandra; 17 is what Cassandra 5 runs on
    setpriv) have setpriv || apt setpriv util-linux ;; # no engine outlives the test that started it
    haproxy) PATH=$PATH:/usr/sbin; have haproxy || apt haproxy haproxy ;; # Debian has it where not everyone looks
    cargo-deny) cargo_tool cargo-deny $CARGO_DENY ;;
    cargo-machete) cargo_tool cargo-machete $CARGO_MACHETE ;;
    schemathesis) python_tool schemathesis $SCHEMATHESIS ;;
    *) have "$tool" || apt "$tool" "$tool" ;;
  esac
done
