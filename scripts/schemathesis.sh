#!/usr/bin/env bash
# Holds a fresh server against its own /openapi.json: schemathesis makes requests that fit it and requests that don't, as
# someone who has signed up, and checks every answer. Prints its seed; the same seed makes the same requests (but for ids
# and times of the server's). Which checks are off where, and why: scripts/schemathesis.toml.
# Usage: BIN=target/debug scripts/schemathesis.sh   [SEED=n] [EXAMPLES=n] [LIMIT_S=90]
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/server.sh

seed=${SEED:-$((RANDOM * 32768 + RANDOM))}
examples=${EXAMPLES:-20}
limit_s=${LIMIT_S:-90}

scripts/need.sh schemathesis
start_server --no-rate-limits

export OTHER URL=$url EMAIL=tester@example.org PASSWORD='correct horse battery'
post() { # path, token, body
  curl -fsS "$url$1" -H "Authorization: Bearer $2" -H 'Content-Type: application/json' -d "$3"
}
tokens=$(post /v1/auth/sign-up '' "{\"username\": \"tester\", \"email\": \"$EMAIL\", \"password\": \"$PASSWORD\"}")
token=$(jq -r .access_token <<<"$tokens")
OTHER=$(post /v1/auth/sign-up '' '{"username": "other", "password": "another one"}' | jq -r .user.id)
ROOM=$(post /v1/rooms "$token" "{\"name\": \"A room\", \"members\": [\"$OTHER\"]}" | jq -r .id)
post /v1/rooms "$token" '{"name": "The commons", "handle": "commons", "visibility": "public"}' >/dev/null
EXPENDABLE=$(post /v1/rooms "$token" '{"name": "Not for long"}' | jq -r .id)
sed "s/@ROOM@/$ROOM/; s/@OTHER@/$OTHER/; s/@EXPENDABLE@/$EXPENDABLE/" scripts/schemathesis.toml >"$work/schemathesis.toml"

echo "seed $seed; again: SEED=$seed make contract-test"
status=0
timeout --signal=INT --preserve-status "$limit_s" target/schemathesis/bin/schemathesis \
  --config-file "$work/schemathesis.toml" run "$url/openapi.json" \
  --seed "$seed" --max-examples "$examples" --continue-on-failure --generation-database none --no-color "$@" || status=$?
[ "$status" != 130 ] || echo "not done in $limit_s s: what was not tried is not known to hold; LIMIT_S=n gives it more" >&2
stop_server
exit $status
