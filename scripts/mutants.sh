#!/usr/bin/env bash
# Shows that the judge is honest: against each mutant of the server, which breaks one promise once, loadtest --verify
# must exit 1 and name the breach; against the same roles without a fault it must exit 0.
set -euo pipefail
cd "$(dirname "$0")/.."

: "${BIN:=target/debug}"
. scripts/server.sh

"$BIN/loadtest" keygen "$work/keys"
failed=0

judge() { # mutant, expected status, a word that must be in the verdict
  local mutant=$1 expected=$2 word=$3 status=0
  "$BIN/mutant" "$mutant" --listen "127.0.0.1:$port" --issuer "load=$work/keys/jwks.json" >"$work/server.log" 2>&1 &
  server=$!
  for _ in $(seq 200); do
    grep -q "mutant is ready" "$work/server.log" && break
    sleep 0.05
  done
  timeout 60 "$BIN/loadtest" run --target "$url" --issuer load --issuer-key "$work/keys/key.pem" \
    --users 20 --rooms 5 --rate 50 --duration 4s --verify >"$work/verdict" 2>&1 || status=$?
  kill -9 "$server"
  wait "$server" 2>/dev/null || true
  if [ "$status" = "$expected" ] && grep -qiE "$word" "$work/verdict"; then
    echo "mutant $mutant: exit $status, as it should be"
  else
    failed=1
    echo "mutant $mutant: exit $status, expected $expected and \"$word\" in:"
    tail -n 15 "$work/verdict"
  fi
}

judge none 0 "every promise held"
judge drop 1 "hole|lost"
judge twice 1 "doubled|twice"
judge swap 1 "order"
judge early 1 "not in history|lost|never stored"
judge corrupt 1 "corrupt|body|differs"
exit $failed
