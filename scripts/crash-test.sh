#!/usr/bin/env bash
# Kills the server with -9 while loadtest --verify runs, and starts it again on the same directory. Exit status:
# loadtest's, which is 0 only if every promise held; or not 0 if the server did not come back or did not stop in order.
#
# Variables: DURATION (seconds), KILLS, USERS, ROOMS, RATE (sends/s), BIN (directory of the binaries), KAFKA=1 (the log on
# Kafka).
set -euo pipefail
cd "$(dirname "$0")/.."

: "${DURATION:=120}" "${KILLS:=5}" "${USERS:=200}" "${ROOMS:=50}" "${RATE:=500}" "${BIN:=target/release}"
. scripts/server.sh

"$BIN/loadtest" keygen "$work/keys"
flags=(--no-rate-limits --issuer "load=$work/keys/jwks.json")
start_server "${flags[@]}"

"$BIN/loadtest" run --target "$url" --issuer load --issuer-key "$work/keys/key.pem" \
  --users "$USERS" --rooms "$ROOMS" --rate "$RATE" --duration "${DURATION}s" --verify &
load=$!

for n in $(seq "$KILLS"); do
  sleep "$((DURATION / (KILLS + 1)))"
  kill -0 "$load" 2>/dev/null || break # it has failed already: its status says so below
  kill_server
  start_server "${flags[@]}"
  echo "kill $n of $KILLS: back"
done

status=0
wait "$load" || status=$?
stop_server
echo "crash test: $KILLS kills in $DURATION s, loadtest exited $status"
exit $status
