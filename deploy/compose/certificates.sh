#!/bin/sh
# Makes an authority and a certificate for each role that has links (docker-compose.yml), once: what is there stays. The authority's
# key is not kept, so that nobody signs another.
# Usage: certificates.sh DIR
set -eu

dir=$1
roles='edge fanout archiver'

for role in $roles; do
  [ -s "$dir/$role/key.pem" ] || missing=1
done
[ -n "${missing:-}" ] || exit 0

umask 077
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 3650 -subj "/CN=posthaste trial" \
  -addext basicConstraints=critical,CA:TRUE,pathlen:0 -addext keyUsage=critical,keyCertSign \
  -keyout "$work/ca.key" -out "$work/ca.pem" 2>"$work/log" || { cat "$work/log" >&2; exit 1; }
for role in $roles; do
  openssl req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj "/CN=$role" \
    -keyout "$work/key.pem" -out "$work/request.pem" 2>"$work/log" || { cat "$work/log" >&2; exit 1; }
  printf '%s\n' "subjectAltName=DNS:$role.posthaste.internal" basicConstraints=critical,CA:FALSE \
    extendedKeyUsage=serverAuth,clientAuth >"$work/extensions"
  openssl x509 -req -in "$work/request.pem" -CA "$work/ca.pem" -CAkey "$work/ca.key" -CAcreateserial -days 3650 \
    -extfile "$work/extensions" -out "$work/certificate.pem" 2>"$work/log" || { cat "$work/log" >&2; exit 1; }
  cp "$work/ca.pem" "$work/certificate.pem" "$dir/$role/"
  cp "$work/key.pem" "$dir/$role/" # last: with it the role is complete
done
