#!/usr/bin/env bash
# Runs every suite on one build in the dev profile. Each suite prints its seconds; the last line has the counts.
set -euo pipefail
cd "$(dirname "$0")/.."

log=$(mktemp)
trap 'rm -f "$log"' EXIT
failed=0
started=$SECONDS

suite() { # name, command…
  local name=$1 begin=$SECONDS
  shift
  echo "── $name"
  if "$@"; then
    echo "── $name: ok, $((SECONDS - begin)) s"
  else
    echo "── $name: FAILED, $((SECONDS - begin)) s"
    return 1
  fi
}

cargo_tests() { cargo test --workspace --locked --no-fail-fast 2>&1 | tee "$log"; }

# Before anything is built: who has no network hears it at once.
jars() {
  local list
  for list in engines/*.jars; do scripts/jars.sh "$list"; done
}
suite "jars of real engines" jars || exit 1
# The binaries and the tests in one command: they share one feature set and so one build.
suite build cargo build --workspace --locked --lib --bins --tests || exit 1
suite "cargo test" cargo_tests || failed=1
scripts_passed=0 scripts_failed=0
script() { # what is not a cargo test counts as one test
  if suite "$@"; then scripts_passed=$((scripts_passed + 1)); else scripts_failed=$((scripts_failed + 1)) failed=1; fi
}
export BIN=target/debug
script "README examples" scripts/readme-test.sh
script "mutants are caught by the judge" scripts/mutants.sh
script "schemathesis" scripts/schemathesis.sh
script "AsyncAPI document" scripts/asyncapi.sh
script "docker-compose.yml" scripts/compose.sh
# The same seeds each time, so that it is the change that is judged; `make simulate` begins anywhere.
script "simulation, 200 seeds" "$BIN/simulate" --seeds 200 --start 1
script "fuzz targets, short form" scripts/fuzz.sh test
script "crash test, short form" env DURATION=20 KILLS=2 USERS=40 ROOMS=10 RATE=100 scripts/crash-test.sh
script "crash test on Kafka, short form" env KAFKA=1 DURATION=25 KILLS=2 USERS=40 ROOMS=10 RATE=100 scripts/crash-test.sh
script "cluster of roles, each killed once" env SMALL=1 DURATION=75 PAUSE=3 KILL="edge-1 ingest-1 fanout-1 archiver-1" USERS=60 ROOMS=15 RATE=60 scripts/cluster-test.sh
script "drain test over TLS, short form" env TLS=1 DURATION=15 STOPS=2 USERS=40 ROOMS=10 RATE=100 scripts/drain-test.sh

# One line per suite: its name and libtest's own clock.
summary=$(awk '
  /^ *Running unittests / { crate = $0; sub(/.*\/deps\//, "", crate); sub(/-[0-9a-f]+\)$/, "", crate) } # first of its crate
  /^ *Running / { name = $0; sub(/^ *Running (unittests )?/, "", name); sub(/ \(.*/, "", name); name = crate " " name }
  /^ *Doc-tests / { name = $2 " (examples in the documentation)" }
  /^test result: / { for (i = 1; i <= NF; i++) { if ($i ~ /^passed/) p = $(i-1); if ($i ~ /^failed/) f = $(i-1); if ($i ~ /^ignored/) g = $(i-1) }
                     passed += p; failed += f; ignored += g
                     if (p + f + g) printf "%8s  %4d passed, %d failed  %s\n", $NF, p, f, name }
  END { printf "%d %d %d\n", passed, failed, ignored }' "$log")
counts=$(tail -n 1 <<<"$summary")
read -r tests_passed tests_failed tests_ignored <<<"$counts"

echo "── suites"
sed '$d' <<<"$summary"
echo "tests: $((tests_passed + scripts_passed)) passed, $((tests_failed + scripts_failed)) failed, $tests_ignored ignored, $((SECONDS - started)) s in all"
exit $failed
