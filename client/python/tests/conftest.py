"""Both services on the demo model, started once for all tests.

STEER_BINARIES is the folder with `steer-worker` and `steer-registry`; by default the
repository's release build.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from steer import Client, Config

REPOSITORY = Path(__file__).parents[3]
BINARIES = Path(os.environ.get("STEER_BINARIES", REPOSITORY / "target/release"))
DEMO = REPOSITORY / "demo"
STARTUP_S = 120


@dataclass
class Service:
    """A child process and where it listens."""

    process: subprocess.Popen[bytes]
    address: str


def start(folder: Path, name: str, *arguments: str, env: dict[str, str] | None = None) -> Service:
    """Starts a service on a free port, which it names on its first lines."""
    log = folder / f"{name}.log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            [BINARIES / name, *arguments, "--listen", "127.0.0.1:0"],
            stderr=file,
            stdout=file,
            env={**os.environ, **(env or {})},
        )
    ends_at = time.monotonic() + STARTUP_S
    while time.monotonic() < ends_at and process.poll() is None:
        found = re.search(r"listening on (127\.0\.0\.1:\d+)", log.read_text())
        if found:
            return Service(process, found[1])
        time.sleep(0.05)
    process.kill()
    raise RuntimeError(f"{name} did not start:\n{log.read_text()}")


@pytest.fixture(scope="session")
def config(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Config]:
    folder = tmp_path_factory.mktemp("services")
    services: list[Service] = []
    try:
        services.append(start(folder, "steer-worker", "--model", str(DEMO / "model")))
        services.append(start(folder, "steer-registry", "--data", str(folder / "registry")))
        config = Config(*(f"http://{service.address}" for service in services), api_key=None)
        with Client(config) as client:
            fill(client)
        yield config
    finally:
        for service in services:
            service.process.kill()
            service.process.wait()


def fill(client: Client) -> None:
    """Imports the demo's SAE, labels and CAVs."""
    demo = demo_file()
    sae, cavs, model_id = demo["sae"], demo["cavs"], client.model().model_id
    client.registry.import_sae(
        DEMO / sae["path"], name=sae["name"], hook=sae["hook"], model_id=model_id
    )
    client.registry.import_labels(DEMO / sae["labels"], sae=sae["name"])
    client.registry.import_cavs(DEMO / cavs["path"], hook=cavs["hook"], model_id=model_id)


def demo_file() -> dict[str, Any]:
    """What the demo consists of."""
    parsed: dict[str, Any] = json.loads((DEMO / "demo.json").read_text())
    return parsed


@pytest.fixture
def client(config: Config) -> Iterator[Client]:
    with Client(config) as client:
        yield client
