#!/usr/bin/env bash
# Runs the README's examples (its ```sh blocks, in order, in one shell) as they are written, against a fresh server.
# Only the address and the directory of the binaries are put in place of the README's.
set -euo pipefail
cd "$(dirname "$0")/.."

: "${BIN:=target/release}"
. scripts/server.sh

start_server
{
  echo 'set -euo pipefail'
  echo 'curl() { command curl --fail-with-body "$@"; }' # an error answer fails the example
  awk '/^```sh$/ { on = 1; next } /^```/ { on = 0 } on' README.md |
    sed "s|http://127.0.0.1:8080|$url|g; s|target/release|$BIN|g"
} >"$work/examples.sh"

bash "$work/examples.sh" >"$work/examples.out" 2>&1 || {
  cat "$work/examples.out"
  echo "the README's examples fail" >&2
  exit 1
}
for shown in '"body":"Hello, world"' '"type":"live"' '"type":"accepted"' 'ada: Hello from a terminal'; do
  grep -qF "$shown" "$work/examples.out" || {
    cat "$work/examples.out"
    echo "the README's examples don't show $shown" >&2
    exit 1
  }
done
stop_server
echo "the README's $(grep -c '^```sh$' README.md) examples work"
