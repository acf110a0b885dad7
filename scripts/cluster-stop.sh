#!/usr/bin/env bash
# Ends what runs in a cluster's folder and waits until all of it has ended, whatever state it is in: the folder's lock is
# held by the supervisor and by each process that it has started (engines/src/supervisor.rs).
# Usage: scripts/cluster-stop.sh DIR
set -euo pipefail

dir=${1:?"usage: scripts/cluster-stop.sh DIR"}
lock=$dir/lock
: "${PATIENCE:=60}" # seconds: roles end in order, which has a limit of its own

free() { flock -s -w "$1" "$lock" true; }

if [ ! -e "$lock" ] || free 0; then
  echo "no cluster runs in $dir" >&2
  exit 0
fi
touch "$dir/stop"
free "$PATIENCE" && exit 0
echo "the cluster's supervisor does not end; killing it" >&2
kill -9 "$(cat "$lock")" || true # the kernel ends its children with it
free 10 && exit 0
echo "something in $dir does not end: see $dir/processes" >&2
exit 1
