#!/usr/bin/env python3
"""Checks alert rules and the dashboard: with promtool where it is installed, and that
every metric they name is one that a service exports."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import yaml

HERE = Path(__file__).parent
FILES = HERE / "steer/files"
SERVICES = HERE.parents[1] / "services"
#: Exported by Prometheus itself.
FOREIGN = {"up"}
#: What Grafana puts in.
GRAFANA = {"$__rate_interval": "5m", "$job": ".*", "$instance": ".*"}


def expressions() -> list[str]:
    """Those of the dashboard, as Prometheus gets them, and those of the alerts."""
    dashboard = json.loads((FILES / "dashboard.json").read_text())
    found = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    for name, value in GRAFANA.items():
        found = [expression.replace(name, value) for expression in found]
    alerts = yaml.safe_load((FILES / "alerts.yaml").read_text())
    return found + [rule["expr"] for group in alerts["groups"] for rule in group["rules"]]


def metrics(expression: str) -> set[str]:
    """Names of the series that an expression reads, without a histogram's suffix."""
    bare = re.sub(r'"[^"]*"', "", expression)
    bare = re.sub(r"\{[^}]*\}|\[[^]]*\]|\b(?:by|on)\s*\([^)]*\)", " ", bare)
    names = re.findall(r"\b[a-z][a-z0-9_]*\b(?!\s*\()", bare)
    return {re.sub(r"_(bucket|count|sum)$", "", n) for n in names} - {
        "and",
        "by",
        "on",
        "max",
        "sum",
    }


def exported() -> set[str]:
    """Every name in quotes in the services' sources."""
    sources = (path.read_text() for path in SERVICES.rglob("*.rs"))
    return {name for text in sources for name in re.findall(r'"([a-z][a-z0-9_]+)"', text)}


def main() -> None:
    """Runs all checks."""
    named = set().union(*map(metrics, expressions())) - FOREIGN
    missing = named - exported()
    assert not missing, f"no service exports {', '.join(sorted(missing))}"
    print(f"{len(named)} metrics in alerts and dashboard, all exported")
    promtool = shutil.which("promtool")
    if promtool is None:
        print("alert rules: not run, promtool is not installed")
        return
    subprocess.run([promtool, "test", "rules", "alerts_test.yaml"], cwd=FILES, check=True)
    # The dashboard's expressions are parsed as if they were recording rules.
    rules = [{"record": f"panel:{i}", "expr": e} for i, e in enumerate(expressions())]
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}, file)
        file.flush()
        subprocess.run([promtool, "check", "rules", file.name], check=True)


if __name__ == "__main__":
    main()
