#!/usr/bin/env bash
# Packs built binaries into the images of the Dockerfile and runs them as a cluster would:
# read-only root, no capabilities, not root.
#   deploy/images/test.sh FOLDER_WITH_THE_BINARIES
# Needs buildah and podman. The stage that compiles is left out: what it would bring is
# made here from the binaries, by the same rootfs.sh.
set -euo pipefail
[ $# -eq 1 ] || { echo "usage: $0 FOLDER_WITH_THE_BINARIES" >&2; exit 2; }
binaries="$(cd "$1" && pwd)"
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
demo="$(cd "$here/../../demo" && pwd)"
work="$(mktemp -d)"
# Storage and isolation that need neither kernel modules nor a daemon.
export STORAGE_DRIVER=vfs BUILDAH_ISOLATION=chroot
MAX_BYTES=60000000
prefix="localhost/steer-test-$$"

cleanup() {
    podman rm --force --time 5 "steer-test-worker-$$" "steer-test-registry-$$" >/dev/null 2>&1 || true
    buildah rmi --force "$prefix-worker" "$prefix-registry" "$prefix-cli" >/dev/null 2>&1 || true
    rm -rf "$work"
}
trap cleanup EXIT

build() { # TARGET BINARY
    "$here/rootfs.sh" "$binaries/$2" "$work/build/rootfs/$2"
    mkdir -p "$work/empty"
    buildah build --quiet --timestamp 0 --build-context "build=$work/build" --target "$1" \
        --tag "$prefix-$1" --file "$here/Dockerfile" "$work/empty" >/dev/null
    local bytes user
    bytes="$(podman image inspect --format '{{.Size}}' "$prefix-$1")"
    user="$(podman image inspect --format '{{.Config.User}}' "$prefix-$1")"
    [ "$user" = 65532:65532 ] || { echo "$1 runs as '$user'" >&2; exit 1; }
    [ "$bytes" -le "$MAX_BYTES" ] || { echo "$1 has $bytes bytes, more than $MAX_BYTES" >&2; exit 1; }
    [ ! -e "$work/build/rootfs/$2/bin/sh" ] || { echo "$1 has a shell" >&2; exit 1; }
    echo "$1: $((bytes / 1000000)) MB, user $user, no shell"
}

confined=(--read-only --cap-drop all --security-opt no-new-privileges --network host
          --pids-limit 0 --ulimit nofile=1024:1024 --ulimit nproc=4096:4096
          --volume "$demo:/models:ro")
command -v runc >/dev/null && confined=(--runtime runc "${confined[@]}")

address() { # CONTAINER
    for _ in $(seq 100); do
        podman logs "$1" 2>&1 | sed -n 's/.*listening on \(127\.0\.0\.1:[0-9]*\).*/\1/p' | grep -m1 . && return
        sleep 0.1
    done
    podman logs "$1" >&2
    return 1
}

build worker steer-worker
first="$(podman image inspect --format '{{.Id}}' "$prefix-worker")"
rm -rf "$work/build"
build worker steer-worker >/dev/null
again="$(podman image inspect --format '{{.Id}}' "$prefix-worker")"
[ "$first" = "$again" ] || { echo "the same binary gave two images" >&2; exit 1; }
build registry steer-registry
build cli steer

begun="$(date +%s%N)"
podman run --detach --name "steer-test-worker-$$" "${confined[@]}" --env STEER_HEALTH_LISTEN=127.0.0.1:0 \
    --env STEER_WORKER_LISTEN=127.0.0.1:0 "$prefix-worker" --model /models/model >/dev/null
podman run --detach --name "steer-test-registry-$$" "${confined[@]}" --env STEER_HEALTH_LISTEN=127.0.0.1:0 \
    --env STEER_REGISTRY_LISTEN=127.0.0.1:0 "$prefix-registry" >/dev/null
worker="$(address "steer-test-worker-$$")"
echo "worker: listening $((($(date +%s%N) - begun) / 1000000)) ms after podman run"
registry="$(address "steer-test-registry-$$")"

steer() {
    podman run --rm "${confined[@]}" "$prefix-cli" \
        --worker "http://$worker" --registry "http://$registry" "$@"
}
steer saes import /models/sae/gemma_scope/params.npz --name demo \
    --hook blocks.3.hook_resid_post --model model >/dev/null
steer labels import /models/labels.jsonl --sae demo >/dev/null
text="$(steer generate 'Write a haiku.' --add-generation-prompt --feature ice-hockey=26 --seed 7 2>/dev/null)"
grep -q goalie <<<"$text" || { echo "the containers said: $text" >&2; exit 1; }
head -n 1 <<<"$text"
podman stop --time 20 "steer-test-worker-$$" >/dev/null
code="$(podman inspect --format '{{.State.ExitCode}}' "steer-test-worker-$$")"
[ "$code" = 0 ] || { echo "the worker ended with $code at SIGTERM" >&2; exit 1; }
echo "images: packed and run"
