#!/usr/bin/env bash
# Builds the wheel, installs it, checks types and style, and runs the tests against
# both services on the demo model.
#   client/python/test.sh WORK_FOLDER FOLDER_WITH_THE_BINARIES
set -euo pipefail
[ $# -eq 2 ] || { echo "usage: $0 WORK_FOLDER FOLDER_WITH_THE_BINARIES" >&2; exit 2; }
mkdir -p "$1"
work="$(cd "$1" && pwd)" binaries="$(cd "$2" && pwd)"
cd "$(dirname "${BASH_SOURCE[0]}")"
python="$work/venv/bin/python"

[ -x "$python" ] || python3 -m venv "$work/venv"
rm -rf "$work/wheel"
"$python" -m pip wheel --quiet --no-deps --wheel-dir "$work/wheel" .
wheel="$(echo "$work"/wheel/steer_client-*.whl)"
"$python" -m pip install --quiet "$wheel[test,dev,notebook]"
# The version does not change with every commit.
"$python" -m pip install --quiet --no-deps --force-reinstall "$wheel"

"$python" -m mypy
"$python" -m ruff check .
"$python" -m ruff format --check .
STEER_BINARIES="$binaries" "$python" -m pytest --quiet -p no:cacheprovider
