#!/usr/bin/env bash
# Runs a command beside real backends, made for it and gone after it:
#
#     services/registry/tests/backends/with.sh cargo test --release --workspace --locked --test it
#
# The command finds them by the environment:
#     STEER_TEST_POSTGRES   postgres://… of a PostgreSQL server, a user who may create databases
set -euo pipefail

folder=$(mktemp -d "${TMPDIR:-/tmp}/steer-backends.XXXXXX")
chmod 755 "$folder"
stops=()
stop_all() {
    for stop in "${stops[@]}"; do "$stop" || true; done
    rm -rf "$folder"
}
trap stop_all EXIT

# PostgreSQL refuses to run as root.
as_postgres() {
    if [ "$(id -u)" = 0 ]; then runuser -u postgres -- "$@"; else "$@"; fi
}

start_postgres() {
    local bin
    bin=$(ls -d /usr/lib/postgresql/*/bin 2>/dev/null | sort -V | tail -n 1 || true)
    if [ -z "$bin" ] && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        apt-get install --quiet --yes --no-install-recommends postgresql >&2
        bin=$(ls -d /usr/lib/postgresql/*/bin | sort -V | tail -n 1)
    fi
    [ -n "$bin" ] || { echo "$0: PostgreSQL is not installed" >&2; exit 1; }
    postgres_control=("$bin/pg_ctl" --pgdata "$folder/postgres/data" --silent)
    mkdir "$folder/postgres"
    echo "not-secret" > "$folder/postgres/password"
    [ "$(id -u)" != 0 ] || chown -R postgres "$folder/postgres"
    as_postgres "$bin/initdb" --pgdata "$folder/postgres/data" --username steer --encoding UTF8 \
        --locale C --auth scram-sha-256 --pwfile "$folder/postgres/password" >/dev/null
    # Only a socket: no port to collide with.
    as_postgres "${postgres_control[@]}" --wait --log "$folder/postgres/log" \
        --options "-c listen_addresses= -c unix_socket_directories=$folder/postgres \
            -c max_connections=400 -c shared_buffers=512MB -c max_wal_size=4GB" start >&2 ||
        { cat "$folder/postgres/log" >&2; exit 1; }
    stops+=(stop_postgres)
    export STEER_TEST_POSTGRES="postgres://steer:not-secret@localhost/postgres?host=$folder/postgres"
}

stop_postgres() {
    as_postgres "${postgres_control[@]}" --mode immediate stop
}

start_postgres
"$@"
