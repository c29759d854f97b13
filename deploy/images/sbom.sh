#!/usr/bin/env bash
# Writes a CycloneDX list of every crate that the images are built from, out of Cargo.lock.
#   deploy/images/sbom.sh TRIVY OUTPUT.json
set -euo pipefail
[ $# -eq 2 ] || { echo "usage: $0 TRIVY OUTPUT.json" >&2; exit 2; }
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
# Scanners for vulnerabilities and secrets need a database from the network: a list does not.
"$1" fs --quiet --offline-scan --scanners '' --format cyclonedx --output "$2" \
    --skip-dirs demo,client/python,target "$here/../.."
