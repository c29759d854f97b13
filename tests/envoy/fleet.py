"""Workers and an Envoy in front of them, as child processes on free ports."""

from __future__ import annotations

import copy
import json
import os
import random
import re
import signal
import socket
import subprocess
import tempfile
import time
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

REPOSITORY = Path(__file__).parents[2]
MODEL = REPOSITORY / "demo/model"
CONFIG = REPOSITORY / "deploy/envoy/envoy.yaml"
#: Set by the trial to what the chart sets: NOT_SERVING before refusing, then time to end.
WORKER_ENV = {
    "STEER_DRAIN_DELAY": "3",
    "STEER_DRAIN_TIMEOUT": "60",
    "STEER_LOG": "warn,steering_worker=info",
}
STARTUP_S = 120
#: Longer than a drain may take.
STOP_S = 150


def free_port() -> int:
    """A port that nobody listens on, below those that the system hands out by itself: a
    worker that is restarted must find its own free again."""
    for port in random.sample(range(20_000, 32_000), 100):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
                return port
            except OSError:
                continue
    raise RuntimeError("no free port between 20000 and 32000")


def wait_for(what: str, condition: Any, timeout_s: float = STARTUP_S) -> float:
    """Waits until the condition holds; how long that took."""
    started = time.monotonic()
    while time.monotonic() - started < timeout_s:
        if condition():
            return time.monotonic() - started
        time.sleep(0.05)
    raise TimeoutError(f"{what}: not within {timeout_s} s")


@dataclass
class Worker:
    """A worker that can be stopped and started again on its port."""

    binary: Path
    folder: Path
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        """Where it listens."""
        return f"127.0.0.1:{self.port}"

    @property
    def log(self) -> Path:
        """What it said since it started."""
        return self.folder / f"worker-{self.port}.log"

    def start(self) -> None:
        """Returns when it listens."""
        with self.log.open("wb") as file:
            self.process = subprocess.Popen(
                [self.binary, "--model", MODEL, "--listen", self.address],
                stdout=file,
                stderr=file,
                env={**os.environ, **WORKER_ENV},
            )
        wait_for(f"worker {self.address}", lambda: "listening on" in self.log.read_text())

    def stop(self, how: signal.Signals = signal.SIGTERM) -> int:
        """Sends a signal; the exit code."""
        assert self.process is not None
        self.process.send_signal(how)
        try:
            return self.process.wait(timeout=STOP_S)
        except subprocess.TimeoutExpired:
            said = self.log.read_text()[-2000:]
            raise TimeoutError(
                f"{self.address} still runs {STOP_S} s after {how.name}:\n{said}"
            ) from None


@dataclass
class Fleet:
    """Workers, other servers that pose as workers, and Envoy with the repository's own file."""

    envoy: Path
    workers: list[Worker]
    folder: Path
    #: Ports of servers that the trial runs itself.
    others: list[int] = field(default_factory=list)
    port: int = field(default_factory=free_port)
    admin: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Starts everything; returns when Envoy finds all workers healthy."""
        for worker in self.workers:
            worker.start()
        path = self.folder / "envoy.yaml"
        path.write_text(json.dumps(self.config()))
        with (self.folder / "envoy.log").open("wb") as log:
            self.process = subprocess.Popen(
                [self.envoy, "-c", path, "--log-level", "warn", "--use-dynamic-base-id"],
                stdout=log,
                stderr=log,
            )
        everybody = len(self.workers) + len(self.others)
        try:
            wait_for("healthy workers", lambda: len(self.healthy()) == everybody)
        except TimeoutError as error:
            said = (self.folder / "envoy.log").read_text()[-2000:]
            raise TimeoutError(f"{error}; Envoy said:\n{said}") from None

    def config(self) -> Any:
        """The repository's configuration with this machine's addresses, else unchanged."""
        config = copy.deepcopy(yaml.safe_load(CONFIG.read_text()))

        def local(place: Any, port: int) -> None:
            place["address"]["socket_address"] = {"address": "127.0.0.1", "port_value": port}

        local(config["admin"], self.admin)
        resources = config["static_resources"]
        local(resources["listeners"][0], self.port)
        [group] = resources["clusters"][0]["load_assignment"]["endpoints"]
        [template] = group["lb_endpoints"]
        group["lb_endpoints"] = []
        for port in [worker.port for worker in self.workers] + self.others:
            endpoint = copy.deepcopy(template)
            local(endpoint["endpoint"], port)
            group["lb_endpoints"].append(endpoint)
        return config

    def hosts(self) -> dict[str, dict[str, str]]:
        """Envoy's figures of every worker, by address."""
        text = self._get("/clusters")
        found: dict[str, dict[str, str]] = {}
        for address, key, value in re.findall(
            r"^workers::(127[^:]*:\d+)::([^:]+)::(.*)$", text, re.M
        ):
            found.setdefault(address, {})[key] = value
        return found

    def healthy(self) -> list[str]:
        """Addresses that get calls."""
        try:
            return [
                a for a, figures in self.hosts().items() if figures["health_flags"] == "healthy"
            ]
        except OSError:
            return []

    def wait_until_healthy(self, worker: Worker) -> None:
        """Returns when Envoy sends calls to the worker."""
        try:
            wait_for(worker.address, lambda: worker.address in self.healthy())
        except TimeoutError as error:
            figures, said = self.hosts()[worker.address], worker.log.read_text()[-2000:]
            raise TimeoutError(f"{error}; for Envoy it is {figures}; it said:\n{said}") from None

    def stat(self, name: str) -> int:
        """A counter of the cluster, e.g. "upstream_rq_retry"."""
        text = self._get(f"/stats?filter=^cluster.workers.{name}$")
        return int(text.rsplit(":", 1)[1]) if text.strip() else 0

    def stop(self) -> None:
        """Ends every process."""
        processes = [worker.process for worker in self.workers] + [self.process]
        for process in processes:
            if process is not None and process.poll() is None:
                process.kill()
                process.wait()

    def _get(self, path: str) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.admin}{path}", timeout=5) as answer:
            return str(answer.read().decode())


def folder() -> tempfile.TemporaryDirectory[str]:
    """Where logs go."""
    return tempfile.TemporaryDirectory(prefix="steer-envoy-")
