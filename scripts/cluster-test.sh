#!/usr/bin/env bash
# Kills processes of a cluster with -9, one after the other, while loadtest --verify runs against it; each must have come
# back and have its share before the next one goes. The load test's table has the longest waits after each. Exit status:
# loadtest's, which is 0 only if every promise held; or not 0 if a process did not come back, or the load ended before all
# had and went on for PAUSE more.
#
# Variables: DURATION (seconds), KILL (names of processes as `make cluster` prints them; empty: none), ROLL=1 (then stops each
# process of a role in order, which the supervisor starts again), PAUSE (seconds before each), USERS, ROOMS, RATE (sends/s), BIN
# (directory of the binaries), SMALL=1 (one node of Kafka and of Cassandra), REPORT (directory that gets result.json and
# index.html).
set -euo pipefail
cd "$(dirname "$0")/.."

: "${DURATION:=300}" "${USERS:=300}" "${ROOMS:=100}" "${RATE:=300}" "${BIN:=target/release}" "${SMALL:=0}"
: "${KILL=edge-1 ingest-1 fanout-1 archiver-1 kafka-1 cassandra-1}" "${ROLL:=0}" "${PAUSE:=30}" "${REPORT:=}"
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
# Whether what had this process id is back: a role's process says so itself, a broker or a node is when it listens, and all
# when everyone has what is theirs again.
is_back() { # name, process id
  local admin pid address
  read -r pid address < <(awk -v name="$1" '$1 == name { print $2, $3 }' "$dir/processes")
  admin=$(tr ' ' '\n' <<<"$ADMIN" | sed -n "s/^$1=//p")
  [ "$pid" != "$2" ] && [ "$pid" != dead ] &&
    if [ -n "$admin" ]; then
      curl -fs --max-time 2 "$admin/readyz" >/dev/null 2>&1
    else
      timeout 2 bash -c ": <>/dev/tcp/${address/://}" 2>/dev/null
    fi &&
    "$BIN/posthaste" admin status --config "$SETTINGS" >/dev/null 2>&1
}

report=${REPORT:-$work/report}
marks=$work/marks
mkdir -p "$report"
"$BIN/loadtest" run --target "$URL" --issuer load --issuer-key "$KEY" --marks "$marks" --json "$report/result.json" \
  --report "$report" --users "$USERS" --rooms "$ROOMS" --rate "$RATE" --duration "${DURATION}s" --verify &
load=$!

# It makes the file when all are connected.
until [ -e "$marks" ] || ! kill -0 "$load" 2>/dev/null; do sleep 0.1; done

faults=0
fault() { # signal, name, what becomes of it
  local pid begun
  kill -0 "$load" 2>/dev/null && sleep "$PAUSE"
  kill -0 "$load" 2>/dev/null || return 0 # it has ended: what it lacks is said below
  pid=$(pid_of "$2")
  echo "$(date +%s%3N) $2 $3" >>"$marks"
  kill "$1" "$pid"
  begun=$SECONDS
  until is_back "$2" "$pid"; do
    if [ $((SECONDS - begun)) -gt 90 ]; then
      echo "$2 does not come back" >&2
      tail -n 20 "$dir/logs/$2.log" >&2
      kill "$load"
      exit 1
    fi
    sleep 0.5
  done
  faults=$((faults + 1))
  echo "$2: $3, back after $((SECONDS - begun)) s"
}

kills=($KILL)
roll=()
[ "$ROLL" = 1 ] && roll=($(awk '$1 ~ /^(edge|ingest|fanout|archiver)-/ { print $1 }' "$dir/processes"))
for name in "${kills[@]}"; do fault -KILL "$name" killed; done
for name in "${roll[@]}"; do fault -TERM "$name" restarted; done

status=0
wait "$load" || status=$?
"$BIN/posthaste" admin status --config "$SETTINGS"
"$BIN/posthaste" admin verify --config "$SETTINGS" || status=1
wanted=$((${#kills[@]} + ${#roll[@]}))
echo "cluster test: $faults of $wanted faults in $DURATION s, loadtest exited $status"
# A load that has ended still waits for outcomes and verifies for a while: what was done by then shows nothing.
held='.load_s as $load_s | (.marks | length) == $wanted and all(.marks[]; .at_s + $pause <= $load_s)'
if [ "$status" = 0 ] &&
  ! jq -e --argjson wanted "$wanted" --argjson pause "$PAUSE" "$held" "$report/result.json" >/dev/null; then
  echo "the load ended before all were done: it takes more DURATION, or less PAUSE" >&2
  status=1
fi
exit $status
