#!/usr/bin/env bash
# Spans of both services as a real OpenTelemetry receiver gets them.
#   tests/otlp/run.sh WORK_FOLDER FOLDER_WITH_THE_BINARIES
set -euo pipefail
[ $# -eq 2 ] || { echo "usage: $0 WORK_FOLDER FOLDER_WITH_THE_BINARIES" >&2; exit 2; }
mkdir -p "$1"
work="$(cd "$1" && pwd)" binaries="$(cd "$2" && pwd)"
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
[ -x "$work/venv/bin/python" ] || python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet "rotel==0.0.1a15"
"$work/venv/bin/python" "$here/trial.py" --binaries "$binaries"
