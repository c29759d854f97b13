#!/usr/bin/env python3
"""Renders the chart with its examples and odd values, and checks what comes out.

    python check_chart.py --helm HELM3 --helm HELM4 [--update]

- every helm renders every example as in `golden/`, blank lines aside: they differ between 3 and 4;
- every object, and the job in `deploy/jobs`, passes the strict schema of Kubernetes 1.29 to
  1.37, if it is one of Kubernetes' own;
- every pod is confined, every selector finds its pods, every name fits;
- values that cannot be honoured are refused, with the reason.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import kubernetes_validate
import yaml

HERE = Path(__file__).parent
CHART = HERE / "steer"
EXAMPLES = sorted((CHART / "examples").glob("*.yaml"))
VERSIONS = [f"1.{minor}.0" for minor in range(29, 38)]
GOLDEN_VERSION = "1.34.0"
#: Objects of operators: rendered and compared, but there is no schema of them here.
WITHOUT_SCHEMA = {"Certificate", "GRPCRoute", "PrometheusRule", "ScaledObject", "ServiceMonitor"}
NEWEST_ONLY = {"weights-from-image": 31}

OPEN = {"auth": {"allowUnauthenticated": True}}
POOL = {"model": "owner/name"}
#: Values that must be refused, and what the refusal has to name.
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({}, "auth: give existingSecret"),
    ({"workers": {"a": {}}, **OPEN}, "workers.a.model: is required"),
    ({"workers": {"a": {**POOL, "replica": 2}}, **OPEN}, "replica"),
    ({"workers": {"a": {**POOL, "replicas": "2"}}, **OPEN}, "replicas"),
    ({"workers": {"a": {**POOL, "replicas": -1}}, **OPEN}, "replicas"),
    ({"workers": {"A_b": POOL}, **OPEN}, "A_b"),
    ({"workers": {"a" * 21: POOL}, **OPEN}, "a" * 21),
    ({"workers": {"a": {"model": "../../etc"}}, **OPEN}, "model"),
    ({"workers": {"a": {**POOL, "quantize": "int4"}}, **OPEN}, "quantize"),
    ({"workers": {"a": {**POOL, "env": {"X": 1}}}, **OPEN}, "env"),
    ({"workers": {"a": {**POOL, "env": {"X}": "1"}}}, **OPEN}, "X}"),
    ({"workers": {"a": {**POOL, "weights": {"source": "pvc"}}}, **OPEN}, "no path under /models"),
    (
        {"workers": {"a": {"model": "/models/m", "weights": {"source": "pvc"}}}, **OPEN},
        "weights.pvc.claimName: is required",
    ),
    (
        {"workers": {"a": {"model": "/models/m"}}, **OPEN},
        "weights.source hub puts no files there",
    ),
    (
        {"workers": {"a": {**POOL, "autoscaling": {"type": "hpa", "minReplicas": 5}}}, **OPEN},
        "workers.a.autoscaling: minReplicas 5 is more than maxReplicas 4",
    ),
    (
        {"workers": {"a": {**POOL, "autoscaling": {"type": "keda", "minReplicas": 5}}}, **OPEN},
        "workers.a.autoscaling: minReplicas 5 is more than maxReplicas 4",
    ),
    (
        {"workers": {"a": {**POOL, "autoscaling": {"type": "hpa", "minReplicas": 0}}}, **OPEN},
        "workers.a.autoscaling.minReplicas: with 0",
    ),
    (
        {"workers": {"a": {**POOL, "autoscaling": {"type": "keda", "minReplicas": 0}}}, **OPEN},
        "workers.a.autoscaling.minReplicas: with 0",
    ),
    (
        {"workers": {"a": {**POOL, "rollout": {"maxSurge": 0}}}, **OPEN},
        "workers.a.rollout: maxSurge and maxUnavailable are both 0",
    ),
    (
        {
            "workers": {"a": {**POOL, "rollout": {"maxSurge": "0%", "maxUnavailable": "00%"}}},
            **OPEN,
        },
        "workers.a.rollout: maxSurge and maxUnavailable are both 0",
    ),
    (
        {"workers": {"a": {**POOL, "image": "mine", "gpu": {"count": 1}}}, **OPEN},
        "workers.a.image: with gpu.count",
    ),
    (
        {"workerDefaults": {"gpu": {"count": 1}}, "workers": {"a": {**POOL, "image": "i"}}, **OPEN},
        "workers.a.image: with gpu.count",
    ),
    (
        {
            "workerDefaults": {"image": "mine", "gpu": {"count": 1}},
            "workers": {"a": POOL, "b": POOL},
            **OPEN,
        },
        'workerDefaults.image: "mine" is given',
    ),
    (
        {"workers": {"a": {**POOL, "gpu": {"image": "mine"}}}, **OPEN},
        "workers.a.gpu.image: is given, but gpu.count is 0",
    ),
    (
        {"workers": {"a": {**POOL, "gpu": {"resource": "amd.com/gpu"}}}, **OPEN},
        "workers.a.gpu.resource: is given, but gpu.count is 0",
    ),
    (
        {"workers": {"a": {**POOL, "maxUnavailable": "101%"}}, **OPEN},
        "workers.a.maxUnavailable: 101% is more",
    ),
    (
        {"workers": {"a": {**POOL, "rollout": {"maxUnavailable": "1000%"}}}, **OPEN},
        "workers.a.rollout.maxUnavailable: 1000% is more",
    ),
    ({"workers": {"a": {**POOL, "grpcRoute": {"enabled": True}}}, **OPEN}, "grpcRoute.parentRefs"),
    ({"registry": {"replicas": 2}, **OPEN}, "SQLite is one replica"),
    ({"registry": {"mode": "postgres"}, **OPEN}, "registry.postgres.existingSecret"),
    ({"registry": {"postgres": {"existingSecret": "s"}}, **OPEN}, "registry.mode is sqlite"),
    ({"registry": {"postgres": {"objects": "s3://b"}}, **OPEN}, "registry.mode is sqlite"),
    ({"registry": {"postgres": {"objectsSecret": "s"}}, **OPEN}, "registry.mode is sqlite"),
    ({"registry": {"postgres": {"backup": {"enabled": True}}}, **OPEN}, "registry.mode is sqlite"),
    *(
        (
            {
                "registry": {
                    "mode": "postgres",
                    "postgres": {"existingSecret": "s", "objects": "s3://b"},
                    "storage": {key: "mine"},
                },
                **OPEN,
            },
            f"registry.storage.{key}: is given, but with registry.mode postgres",
        )
        for key in ("existingClaim", "storageClassName")
    ),
    (
        {"registry": {"storage": {"existingClaim": "c", "storageClassName": "fast"}}, **OPEN},
        "registry.storage.storageClassName: is given, but storage.existingClaim",
    ),
    ({"registry": {"mode": "mysql"}, **OPEN}, "mode"),
    ({"registry": {"hubAllow": ["*"]}, **OPEN}, "hubAllow"),
    ({"tls": {"enabled": True}, **OPEN}, "tls.registrySecret"),
    ({"tls": {"clientCertificates": True}}, "tls.clientCertificates: is given"),
    ({"tls": {"workerSecret": "t"}, **OPEN}, "tls.workerSecret: is given"),
    ({"tls": {"registrySecret": "t"}, **OPEN}, "tls.registrySecret: is given"),
    ({"tls": {"certManager": {"enabled": True}}, **OPEN}, "tls.certManager.enabled: is given"),
    ({"tls": {"enabled": True, "certManager": {"enabled": True}}, **OPEN}, "issuerRef.name"),
    *(
        (
            {
                "tls": {
                    "enabled": True,
                    "certManager": {"enabled": True, "issuerRef": {"name": "i"}},
                    key: "mine",
                },
                **OPEN,
            },
            f"tls.{key}: is given, but tls.certManager",
        )
        for key in ("workerSecret", "registrySecret")
    ),
    ({"metric": {}, **OPEN}, "metric"),
    ({"tracing": {"otlpEndpoint": "collector:4317"}, **OPEN}, "otlpEndpoint"),
    ({"tracing": {"otlpEndpoint": "http://collector:0"}, **OPEN}, "otlpEndpoint"),
    ({"tracing": {"otlpEndpoint": "http://collector:04317"}, **OPEN}, "otlpEndpoint"),
    ({"tracing": {"otlpEndpoint": "http://collector:65536"}, **OPEN}, "otlpEndpoint"),
    ({"tracing": {"otlpEndpoint": "http://collector:100000"}, **OPEN}, "otlpEndpoint"),
    ({"auth": {"existingSecret": "keys", "key": ""}}, "key"),
    ({"auth": {"existingSecret": "keys", "key": "a/b"}}, "key"),
    ({"auth": {"existingSecret": "keys", "key": ".."}}, "key"),
]

#: Releases and values that must render, odd as they are: YAML reads some names as something else.
ACCEPTED: list[tuple[str, dict[str, Any]]] = [
    ("r" * 53, {"workers": {"a" * 20: {**POOL, "replicas": 2}}, **OPEN}),
    (
        "steer",
        {"workers": {"a": {**POOL, "contextLength": 1_000_000, "startupSeconds": 86_400}}, **OPEN},
    ),
    (
        "steer",
        {
            "workers": {
                "a": {
                    **POOL,
                    "replicas": 2,
                    "maxUnavailable": 1_000_000,
                    "rollout": {"maxSurge": 1_000_000, "maxUnavailable": "50%"},
                },
                "b": {**POOL, "replicas": 2, "maxUnavailable": "100%"},
                "c": {
                    **POOL,
                    "autoscaling": {
                        "type": "keda",
                        "minReplicas": 1000,
                        "maxReplicas": 1000,
                        "timeToFirstTokenSeconds": 1_000_000,
                    },
                },
            },
            "auth": {"existingSecret": "keys", "key": ".a..B_c-1"},
            "tracing": {"otlpEndpoint": "https://collector:65535"},
        },
    ),
    (
        "steer",
        {
            "workerDefaults": {"image": "mine"},
            "workers": {"a": POOL, "b": {**POOL, "gpu": {"count": 1, "image": "gpu"}}},
            **OPEN,
        },
    ),
    ("true", {"workers": {"123": POOL, "true": POOL, "1e3": POOL, "null": POOL}, **OPEN}),
    ("123", {"nameOverride": "steer", "workers": {"a": POOL}, **OPEN}),
    (
        "steer",
        {
            "nameOverride": "null",
            "workers": {
                "a": {
                    **POOL,
                    "priorityClassName": "1000",
                    "gpu": {"count": 1, "runtimeClassName": "0x1"},
                    "hubCache": {"sizeLimit": "1000000000"},
                    "env": {"NO": "1000000", "null": "true"},
                }
            },
            "registry": {"storage": {"size": "1000000000"}},
            "serviceAccount": {"name": "123"},
            "metrics": {"serviceMonitor": {"enabled": True}, "prometheusRule": {"enabled": True}},
            **OPEN,
        },
    ),
]


def render(helm: str, values: Path | dict[str, Any], kube: str, release: str = "steer") -> str:
    """The chart's manifests; raises CalledProcessError with helm's message."""
    command = [helm, "template", release, str(CHART), "--namespace", "ml", "--kube-version", kube]
    if isinstance(values, Path):
        command += ["--values", str(values)]
        given = None
    else:
        command += ["--values", "-"]
        given = json.dumps(values)
    done = subprocess.run(command, input=given, capture_output=True, text=True, check=True)
    return "\n".join(line for line in done.stdout.splitlines() if line.strip()) + "\n"


def check_golden(helms: list[str], update: bool) -> None:
    """Every helm renders the examples as they are stored."""
    for example in EXAMPLES:
        golden = HERE / "golden" / example.name
        if update:
            golden.parent.mkdir(exist_ok=True)
            golden.write_text(render(helms[0], example, GOLDEN_VERSION))
        for helm in helms:
            rendered = render(helm, example, GOLDEN_VERSION)
            assert rendered == golden.read_text(), f"{golden} differs: run with --update and look"


def check_schemas(helm: str) -> None:
    """Kubernetes' own objects are valid in every version; the others are named."""
    checked, unchecked = 0, set()
    for example in EXAMPLES:
        oldest = NEWEST_ONLY.get(example.stem, 0)
        for version in VERSIONS:
            if int(version.split(".")[1]) < oldest:
                refused(helm, yaml.safe_load(example.read_text()), "Kubernetes 1.31", version)
                continue
            for document in documents(render(helm, example, version)):
                if document["kind"] in WITHOUT_SCHEMA:
                    unchecked.add(document["kind"])
                else:
                    kubernetes_validate.validate(document, version, strict=True)
                    checked += 1
    for version in VERSIONS:
        job = yaml.safe_load((HERE.parent / "jobs/capture-job.yaml").read_text())
        kubernetes_validate.validate(job, version, strict=True)
        checked += 1
    print(f"{checked} objects valid, Kubernetes {VERSIONS[0]} to {VERSIONS[-1]}")
    print(f"no schema for: {', '.join(sorted(unchecked))}")


def documents(rendered: str) -> list[dict[str, Any]]:
    """The objects of a rendered chart."""
    return [document for document in yaml.safe_load_all(rendered) if document]


def refused(
    helm: str,
    values: dict[str, Any],
    reason: str,
    kube: str = GOLDEN_VERSION,
    release: str = "steer",
) -> None:
    """Helm refuses the values and says why."""
    try:
        render(helm, values, kube, release)
    except subprocess.CalledProcessError as error:
        assert reason in error.stderr, f"{values}: expected {reason!r} in:\n{error.stderr}"
    else:
        raise AssertionError(f"{values} were accepted")


def check_variables(helm: str) -> None:
    """Every variable that the chart sets is refused in `env`."""
    tried = set()
    for example in EXAMPLES:
        for template in pod_templates(documents(render(helm, example, GOLDEN_VERSION))):
            labels = template["metadata"]["labels"]
            component, pool = labels["app.kubernetes.io/component"], labels.get("steer-pool")
            for env in template["spec"]["containers"][0]["env"]:
                name = env["name"]
                if component == "backup" or (component, name) in tried:
                    continue
                tried.add((component, name))
                values = yaml.safe_load(example.read_text())
                values_of = values["workers"][pool] if pool else values["registry"]
                values_of["env"] = {name: "x"}
                at = f"workers.{pool}" if pool else "registry"
                refused(helm, values, f"{at}.env: {name} is set already")
    assert len(tried) > 30, tried


def check_pods(objects: list[dict[str, Any]]) -> None:
    """Pods are confined, probed and bounded, and end after their drain."""
    for template in pod_templates(objects):
        spec, labels = template["spec"], template["metadata"]["labels"]
        name = labels["app.kubernetes.io/component"]
        assert spec["securityContext"]["runAsNonRoot"], name
        assert spec["automountServiceAccountToken"] is False, name
        for container in spec["containers"]:
            security = container["securityContext"]
            assert security["readOnlyRootFilesystem"], name
            assert not security["allowPrivilegeEscalation"], name
            assert security["capabilities"] == {"drop": ["ALL"]}, name
            assert "memory" in container["resources"]["limits"], name
            env = {one["name"]: one.get("value") for one in container["env"]}
            assert len(env) == len(container["env"]), f"{name}: a variable is given twice"
            mounts = {mount["name"] for mount in container["volumeMounts"]}
            assert mounts == {volume["name"] for volume in spec["volumes"]}, name
            if name == "backup":
                continue
            drain = int(env["STEER_DRAIN_DELAY"]) + int(env["STEER_DRAIN_TIMEOUT"])
            assert spec["terminationGracePeriodSeconds"] > drain, name
            assert {"startupProbe", "readinessProbe", "livenessProbe"} <= container.keys(), name


def check_strings(objects: list[dict[str, Any]]) -> None:
    """Nothing that names an object or a variable is read as a number, a boolean or null."""
    for one in objects:
        labels = one["metadata"]["labels"]
        strings = [one["metadata"]["name"], *labels.keys(), *labels.values()]
        selector = one["spec"].get("selector", {}) if "spec" in one else {}
        strings += selector.get("matchLabels", {}).values()
        assert all(isinstance(string, str) for string in strings), strings
    for template in pod_templates(objects):
        for container in template["spec"]["containers"]:
            for env in container["env"]:
                assert all(isinstance(env.get(key, ""), str) for key in ("name", "value")), env


def pod_templates(objects: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Templates of Deployments and CronJobs."""
    deployments = [o["spec"]["template"] for o in objects if o["kind"] == "Deployment"]
    jobs = [o["spec"]["jobTemplate"]["spec"]["template"] for o in objects if o["kind"] == "CronJob"]
    return deployments + jobs


def check_references(objects: list[dict[str, Any]]) -> None:
    """Names fit and are unique; selectors and targets find something."""
    names = [(one["kind"], one["metadata"]["name"]) for one in objects]
    assert len(set(names)) == len(names), names
    assert all(len(name) <= 63 for _, name in names), names
    labels = [template["metadata"]["labels"] for template in pod_templates(objects)]

    def found(selector: dict[str, str]) -> int:
        return sum(selector.items() <= candidate.items() for candidate in labels)

    for one in objects:
        if one["kind"] == "Service":
            assert found(one["spec"]["selector"]) == 1, one["metadata"]["name"]
        if one["kind"] in ("PodDisruptionBudget", "Deployment"):
            assert found(one["spec"]["selector"]["matchLabels"]) == 1, one["metadata"]["name"]
        if one["kind"] in ("HorizontalPodAutoscaler", "ScaledObject"):
            target = one["spec"]["scaleTargetRef"]["name"]
            [deployment] = [
                o for o in objects if (o["kind"], o["metadata"]["name"]) == ("Deployment", target)
            ]
            assert "replicas" not in deployment["spec"], (
                "the autoscaler's and the chart's would fight"
            )
        if one["kind"] == "GRPCRoute":
            for backend in one["spec"]["rules"][0]["backendRefs"]:
                assert ("Service", backend["name"]) in names


def main() -> None:
    """Runs all checks."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--helm", action="append", required=True)
    parser.add_argument("--update", action="store_true", help="store what is rendered as golden")
    arguments = parser.parse_args()
    check_golden(arguments.helm, arguments.update)
    check_schemas(arguments.helm[-1])
    check_variables(arguments.helm[-1])
    for helm in arguments.helm:
        for values, reason in REFUSED:
            refused(helm, values, reason)
        for release in ("123", "a.b"):
            refused(helm, OPEN, "nameOverride: give one", release=release)
    renders = [render(arguments.helm[-1], example, GOLDEN_VERSION) for example in EXAMPLES]
    for helm in arguments.helm:
        renders += [render(helm, values, GOLDEN_VERSION, release) for release, values in ACCEPTED]
    for rendered in renders:
        assert "e+0" not in rendered, "a large number was written in another form"
        check_strings(documents(rendered))
        check_pods(documents(rendered))
        check_references(documents(rendered))
        for document in documents(rendered):
            if document["kind"] not in WITHOUT_SCHEMA:
                kubernetes_validate.validate(document, GOLDEN_VERSION, strict=True)
    refusals = f"{len(REFUSED)} odd values refused, {len(ACCEPTED)} rendered"
    print(f"{len(EXAMPLES)} examples as stored, {refusals}, by {len(arguments.helm)} helms")


if __name__ == "__main__":
    sys.exit(main())
