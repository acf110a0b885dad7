# For scripts that need a server of their own: sourced, with BIN naming the directory of the binaries. Everything is on
# loopback, on ports that are free, with its data in a new directory that goes away with the script. With TLS=1 clients
# reach it over https and trust its certificate by "${trust[@]}"; with KAFKA=1 its log is on a Kafka of its own.

work=$(mktemp -d)

free_port() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }

port=$(free_port)
admin_port=$(free_port)
url=http://127.0.0.1:$port
trust=() tls=()

if [ "${TLS:-0}" = 1 ]; then
  openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 1 -subj /CN=localhost \
    -addext subjectAltName=DNS:localhost,IP:127.0.0.1 -addext basicConstraints=critical,CA:FALSE \
    -keyout "$work/key.pem" -out "$work/cert.pem" 2>"$work/openssl.log" || { cat "$work/openssl.log" && exit 1; } >&2
  url=https://localhost:$port
  trust=(--ca "$work/cert.pem")
  tls=(--tls-cert "$work/cert.pem" --tls-key "$work/key.pem")
fi

if [ "${KAFKA:-0}" = 1 ]; then
  coproc engines { TMPDIR=$work exec "$BIN/engines" kafka; }
  read -r POSTHASTE_KAFKA__BOOTSTRAP <&"${engines[0]}" || { echo "no Kafka" && exit 1; } >&2
  export POSTHASTE_KAFKA__BOOTSTRAP POSTHASTE_KAFKA__REPLICATION=1 POSTHASTE_KAFKA__MIN_IN_SYNC=1
  "$BIN/posthaste" admin topics >"$work/topics" 2>&1 || { cat "$work/topics" && exit 1; } >&2
fi

start_server() { # further flags…
  "$BIN/posthaste" serve --data "$work/data" --listen "127.0.0.1:$port" --admin-listen "127.0.0.1:$admin_port" "${tls[@]}" "$@" \
    >>"$work/server.log" 2>&1 &
  server=$!
  for _ in $(seq 200); do
    curl -fs "http://127.0.0.1:$admin_port/readyz" >/dev/null 2>&1 && return
    kill -0 "$server" 2>/dev/null || break
    sleep 0.05
  done
  echo "the server does not become ready:" >&2
  tail -n 20 "$work/server.log" >&2
  return 1
}

kill_server() { # as a crash does: nothing is flushed, nobody is told
  kill -9 "$server"
  wait "$server" 2>/dev/null || true
}

stop_server() { # in order; its exit status is ours
  kill -TERM "$server"
  wait "$server"
}

clean_up() {
  local status=$?
  jobs -p | xargs -r kill -9 # whatever this script has started and not waited for
  [ "$status" = 0 ] || { echo "the server's last lines:" && tail -n 20 "$work/server.log"; } >&2
  rm -rf "$work"
}
trap clean_up EXIT
