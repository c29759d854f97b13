#!/usr/bin/env bash
# Starts both services on a fixture and runs the reflection client against them.
#   tests/python/run.sh PYTHON FOLDER_WITH_THE_BINARIES
set -euo pipefail
here="$(cd "$(dirname "$0")" && pwd)"
python="$1" binaries="$2"
fixture="$(cd "$here/../golden/fixtures/gemma2" && pwd)"
work="$(mktemp -d)"
trap 'kill $(jobs -p) 2>/dev/null || true; wait; rm -rf "$work"' EXIT

# Port 0 means a free one; each service says which on its first lines.
"$binaries/steer-worker" --model "$fixture/model" --listen 127.0.0.1:0 2>"$work/worker.log" &
"$binaries/steer-registry" --data "$work/registry" --listen 127.0.0.1:0 2>"$work/registry.log" &

address() {
    for _ in $(seq 100); do
        sed -n 's/.*listening on \(127\.0\.0\.1:[0-9]*\).*/\1/p' "$work/$1.log" | head -n 1 | grep . && return
        sleep 0.1
    done
    cat "$work/$1.log" >&2
    return 1
}
worker="$(address worker)"
registry="$(address registry)"
"$python" "$here/reflection_client.py" "$worker" "$registry" "$fixture" ||
    { cat "$work"/*.log >&2; exit 1; }
