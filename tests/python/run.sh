#!/usr/bin/env bash
# Starts both services on a fixture and runs the reflection client against them.
#   tests/python/run.sh PYTHON FOLDER_WITH_THE_BINARIES
set -euo pipefail
here="$(cd "$(dirname "$0")" && pwd)"
python="$1" binaries="$2"
fixture="$here/../golden/fixtures/gemma2"
work="$(mktemp -d)"
trap 'kill $(jobs -p) 2>/dev/null || true; wait; rm -rf "$work"' EXIT

"$binaries/steer-worker" --model "$fixture/model" --listen 127.0.0.1:50951 2>"$work/worker.log" &
"$binaries/steer-registry" --data "$work/registry" --listen 127.0.0.1:50952 2>"$work/registry.log" &
for port in 50951 50952; do
    for _ in $(seq 100); do
        (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null && break
        sleep 0.1
    done
done
"$python" "$here/reflection_client.py" 127.0.0.1:50951 127.0.0.1:50952 "$(cd "$fixture" && pwd)" ||
    { cat "$work"/*.log >&2; exit 1; }
