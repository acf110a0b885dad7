#!/usr/bin/env bash
# What an idle socket costs the server: how its resident memory grows from a tenth of the sockets to all of them, plain
# and over TLS, each on a fresh server under `loadtest run --scenario idle`. Exit status 0 only if all sockets were live.
#
# Variables: USERS (sockets), SETTLE (seconds between the last socket and the measurement), BIN (directory of the
# binaries).
set -euo pipefail
cd "$(dirname "$0")/.."

: "${USERS:=10000}" "${SETTLE:=10}" "${BIN:=target/release}"

metric() { curl -fs "http://127.0.0.1:$admin_port/metrics" | awk -v name="$1" '$1 == name { printf "%d\n", $2 }'; }

measure() { # name; TLS as server.sh has it
  . scripts/server.sh
  "$BIN/loadtest" keygen "$work/keys"
  start_server --no-rate-limits --issuer "load=$work/keys/jwks.json"
  # It ends by the kill below: how long connecting takes depends on the machine.
  "$BIN/loadtest" run --target "$url" "${trust[@]}" --issuer load --issuer-key "$work/keys/key.pem" \
    --scenario idle --users "$USERS" --duration 10m >"$work/load.log" 2>&1 &
  load=$!
  local sockets=0 first='' first_bytes bytes
  for _ in $(seq 6000); do
    kill -0 "$load" 2>/dev/null || break
    sockets=$(metric posthaste_edge_sockets)
    if [ -z "$first" ] && [ "$sockets" -ge $((USERS / 10)) ]; then
      first=$sockets first_bytes=$(metric process_resident_memory_bytes)
    fi
    [ "$sockets" -ge "$USERS" ] && break
    sleep 0.1
  done
  sleep "$SETTLE"
  sockets=$(metric posthaste_edge_sockets)
  bytes=$(metric process_resident_memory_bytes)
  if [ "$sockets" != "$USERS" ] || [ "$first" = "$USERS" ]; then
    echo "$1: $first and then $sockets of $USERS sockets are live" && tail -n 5 "$work/load.log"
    return 1
  fi >&2
  awk -v name="$1" -v sockets="$sockets" -v first="$first" -v bytes="$bytes" -v before="$first_bytes" 'BEGIN {
    printf "%-5s  %5.1f KiB for each idle socket (%.1f MiB at %d, %.1f MiB at %d)\n",
      name, (bytes - before) / (sockets - first) / 1024, before / 1048576, first, bytes / 1048576, sockets }'
  kill "$load"
}

(measure plain)
(TLS=1 measure TLS)
