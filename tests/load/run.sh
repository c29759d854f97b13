#!/usr/bin/env bash
# A short soak and a short overload of real services on the demo model; counts, not times.
#   tests/load/run.sh FOLDER_WITH_THE_BINARIES [SOAK_SECONDS]
set -euo pipefail
[ $# -ge 1 ] || { echo "usage: $0 FOLDER_WITH_THE_BINARIES [SOAK_SECONDS]" >&2; exit 2; }
binaries="$(cd "$1" && pwd)" seconds="${2:-20}"
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)"
work="$(mktemp -d)"
cleanup() {
    kill "${pids[@]}" 2>/dev/null || true
    wait "${pids[@]}" 2>/dev/null || true
    rm -rf "$work"
}
pids=()
trap cleanup EXIT

ports=($(python3 - <<'PYTHON'
import socket  # not of 127.0.0.1: a connection from there could take one before its server does
probes = [socket.socket() for _ in range(4)]
for probe in probes:
    probe.bind(("127.0.0.2", 0))
print(*(probe.getsockname()[1] for probe in probes))
PYTHON
))
"$binaries/steer-worker" --model "$root/demo/model" --listen "127.0.0.2:${ports[0]}" \
    --health-listen "127.0.0.2:${ports[1]}" --max-queued 64 --prefix-cache-mib 8 \
    --log info,steer::request=off 2>"$work/worker.log" &
pids+=($!)
"$binaries/steer-registry" --data "$work/data" --listen "127.0.0.2:${ports[2]}" \
    --health-listen "127.0.0.2:${ports[3]}" --log warn,steer::request=off 2>"$work/registry.log" &
pids+=($!)
export STEER_WORKER="http://127.0.0.2:${ports[0]}" STEER_REGISTRY="http://127.0.0.2:${ports[2]}"
for _ in $(seq 600); do
    state="$("$binaries/steer" status --json 2>/dev/null || true)" # it fails while they load
    case "$state" in '' | *'"not_serving"'* | *'"unreachable"'*) sleep 0.1 ;; *) break ;; esac
done

"$binaries/steer-load" soak --streams 64 --seconds "$seconds" --settle $((seconds / 3)) --with-registry \
    --max-new-tokens 16 --watch "127.0.0.2:${ports[1]}" --watch "127.0.0.2:${ports[3]}" --max-growth 64
"$binaries/steer-load" overload --streams 32 --seconds 5 --max-new-tokens 16 --json >"$work/overload.json"
python3 - "$work/overload.json" <<'PYTHON'
import json, sys
found = json.load(open(sys.argv[1]))
print("overload:", {key: value for key, value in found.items() if key != "failed"})
assert not found["failed"], found["failed"][:5]
assert found["served"] > 0 and found["refused"] > 0, "there was no overload"
PYTHON
