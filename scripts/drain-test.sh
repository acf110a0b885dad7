#!/usr/bin/env bash
# Stops the server with SIGTERM while loadtest --verify runs, and starts it again on the same directory. Exit status 0
# only if every promise held, each stop ended with 0 within the grace time, no client was live again more than once for a
# stop, and few came back in vain: a server that takes longer to start again, on a busy disk, is met by those who were told
# to come first.
#
# Variables: DURATION (seconds), STOPS, USERS, ROOMS, RATE (sends/s), SPREAD_MS (over how long clients are
# told to come back), TLS (1: over https), BIN (directory of the binaries).
set -euo pipefail
cd "$(dirname "$0")/.."

: "${DURATION:=60}" "${STOPS:=3}" "${USERS:=200}" "${ROOMS:=50}" "${RATE:=500}" "${BIN:=target/release}"
. scripts/server.sh

"$BIN/loadtest" keygen "$work/keys"
flags=(--no-rate-limits --issuer "load=$work/keys/jwks.json")
# All are back long before the next stop: who meets two of them at once comes back in vain by right.
export POSTHASTE_EDGE__DRAIN_RETRY_SPREAD_MS=${SPREAD_MS:-$((DURATION * 500 / (STOPS + 1)))}
start_server "${flags[@]}"

"$BIN/loadtest" run --target "$url" "${trust[@]}" --issuer load --issuer-key "$work/keys/key.pem" --json "$work/result.json" \
  --users "$USERS" --rooms "$ROOMS" --rate "$RATE" --duration "${DURATION}s" --verify &
load=$!

for n in $(seq "$STOPS"); do
  sleep "$((DURATION / (STOPS + 1)))"
  kill -0 "$load" 2>/dev/null || break # it has failed already: its status says so below
  began=$(date +%s%N)
  stop_server
  took=$((($(date +%s%N) - began) / 1000000))
  start_server "${flags[@]}"
  echo "stop $n of $STOPS: ended in order in $took ms, back"
done

status=0
wait "$load" || status=$?
stop_server
count() { jq ".counts.$1" "$work/result.json"; }
echo "drain test: $STOPS stops in $DURATION s, $(count reconnects) reconnects of $USERS clients, of one client" \
  "$(count reconnects_max) at most, $(count in_vain) in vain, loadtest exited $status"
lived=$(($(count reconnects) - $(count in_vain)))
[ "$status" = 0 ] && [ "$lived" -gt 0 ] && [ "$lived" -le $((USERS * STOPS)) ] && [ $(($(count in_vain) * 4)) -le "$lived" ]
