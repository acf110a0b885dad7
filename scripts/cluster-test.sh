#!/usr/bin/env bash
# Kills processes of a cluster with -9, one after the other, while loadtest --verify runs against it; each must have come
# back and have its share before the next one goes. Exit status: loadtest's, which is 0 only if every promise held; or not 0 if
# a process did not come back.
#
# Variables: DURATION (seconds), KILL (names of processes as `make cluster` prints them), PAUSE (seconds before each), USERS,
# ROOMS, RATE (sends/s), BIN (directory of the binaries), SMALL=1 (one node of Kafka and of Cassandra).
set -euo pipefail
cd "$(dirname "$0")/.."

: "${DURATION:=300}" "${USERS:=300}" "${ROOMS:=100}" "${RATE:=300}" "${BIN:=target/release}" "${SMALL:=0}"
: "${KILL:=edge-1 ingest-1 fanout-1 archiver-1 kafka-1 cassandra-1}" "${PAUSE:=30}"
PATH=$PATH:/usr/sbin # HAProxy is there in Debian

work=$(mktemp -d)
dir=$work/cluster
end() {
  scripts/cluster-stop.sh "$dir" || true
  rm -rf "$work"
}
trap end EXIT

listen=127.0.0.1:$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
flags=()
[ "$SMALL" = 1 ] && flags=(--small)
"$BIN/engines" cluster start "$dir" --bin "$BIN" --listen "$listen" "${flags[@]}"
. "$dir/env"

pid_of() { awk -v name="$1" '$1 == name { print $2 }' "$dir/processes"; }
# A role's process says so itself; a broker or a node is back when everyone has what is theirs again.
is_ready() {
  local admin
  admin=$(tr ' ' '\n' <<<"$ADMIN" | sed -n "s/^$1=//p")
  { [ -z "$admin" ] || curl -fs --max-time 2 "$admin/readyz" >/dev/null 2>&1; } &&
    "$BIN/posthaste" admin status --config "$SETTINGS" >/dev/null 2>&1
}

"$BIN/loadtest" run --target "$URL" --issuer load --issuer-key "$KEY" \
  --users "$USERS" --rooms "$ROOMS" --rate "$RATE" --duration "${DURATION}s" --verify &
load=$!

names=($KILL)
kills=0
for name in "${names[@]}"; do
  sleep "$PAUSE"
  kill -0 "$load" 2>/dev/null || break # it has ended: its status says how, below
  pid=$(pid_of "$name")
  kill -9 "$pid"
  killed=$SECONDS
  until [ "$(pid_of "$name")" != "$pid" ] && is_ready "$name"; do
    if [ $((SECONDS - killed)) -gt 90 ]; then
      echo "$name does not come back" >&2
      tail -n 20 "$dir/logs/$name.log" >&2
      kill "$load"
      exit 1
    fi
    sleep 0.5
  done
  kills=$((kills + 1))
  echo "$name: killed, back after $((SECONDS - killed)) s"
done

status=0
wait "$load" || status=$?
"$BIN/posthaste" admin status --config "$SETTINGS"
"$BIN/posthaste" admin verify --config "$SETTINGS" || status=1
echo "cluster test: $kills of ${#names[@]} kills in $DURATION s, loadtest exited $status"
exit $status
