"""Workers and an Envoy in front of them, as child processes on ports that the system gives."""

from __future__ import annotations

import copy
import json
import os
import re
import signal
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
    #: One that no other server has, e.g. "127.0.0.2": connections go out from 127.0.0.1, so none
    #: of them takes the port while the worker is away.
    host: str
    #: The system's choice at the first start.
    port: int = 0
    process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        """Where it listens."""
        return f"{self.host}:{self.port}"

    @property
    def log(self) -> Path:
        """What it said since it started."""
        return self.folder / f"worker-{self.host}.log"

    def start(self) -> None:
        """Returns when it listens."""
        with self.log.open("wb") as file:
            self.process = subprocess.Popen(
                [self.binary, "--model", MODEL, "--listen", self.address],
                stdout=file,
                stderr=file,
                env={**os.environ, **WORKER_ENV},
            )
        listening = re.compile(rf"listening on {re.escape(self.host)}:(\d+)")
        try:
            wait_for(f"worker {self.address}", lambda: listening.search(self.log.read_text()))
        except TimeoutError as error:
            raise TimeoutError(f"{error}; it said:\n{self.log.read_text()[-2000:]}") from None
        self.port = int(listening.findall(self.log.read_text())[0])

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
    #: Addresses of servers that the trial runs itself.
    others: list[str] = field(default_factory=list)
    #: Where clients call, once it has started.
    address: str = ""
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Starts everything; returns when Envoy finds all workers healthy."""
        self.admin.unlink(missing_ok=True)
        for worker in self.workers:
            worker.start()
        path = self.folder / "envoy.yaml"
        path.write_text(json.dumps(self.config()))
        with (self.folder / "envoy.log").open("wb") as log:
            self.process = subprocess.Popen(
                [self.envoy, "-c", path, "--log-level", "warn", "--use-dynamic-base-id"]
                + ["--admin-address-path", self.admin],
                stdout=log,
                stderr=log,
            )
        everybody = len(self.workers) + len(self.others)
        try:
            wait_for("healthy workers", lambda: len(self.healthy()) == everybody)
        except TimeoutError as error:
            said = (self.folder / "envoy.log").read_text()[-2000:]
            raise TimeoutError(f"{error}; Envoy said:\n{said}") from None
        [listener] = json.loads(self._get("/listeners?format=json"))["listener_statuses"]
        socket = listener["local_address"]["socket_address"]
        self.address = f"{socket['address']}:{socket['port_value']}"

    @property
    def admin(self) -> Path:
        """Where Envoy writes its admin address."""
        return self.folder / "envoy-admin"

    def config(self) -> Any:
        """The repository's configuration with this machine's addresses, else unchanged."""
        config = copy.deepcopy(yaml.safe_load(CONFIG.read_text()))

        def local(place: Any, address: str) -> None:
            host, port = address.split(":")
            place["address"]["socket_address"] = {"address": host, "port_value": int(port)}

        local(config["admin"], "127.0.0.1:0")
        resources = config["static_resources"]
        local(resources["listeners"][0], "127.0.0.1:0")
        [group] = resources["clusters"][0]["load_assignment"]["endpoints"]
        [template] = group["lb_endpoints"]
        group["lb_endpoints"] = []
        for address in [worker.address for worker in self.workers] + self.others:
            endpoint = copy.deepcopy(template)
            local(endpoint["endpoint"], address)
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
        except (OSError, ValueError):  # no answer yet, or an address that is being written
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
        url = f"http://{self.admin.read_text()}{path}"
        with urllib.request.urlopen(url, timeout=5) as answer:
            return str(answer.read().decode())


def folder() -> tempfile.TemporaryDirectory[str]:
    """Where logs go."""
    return tempfile.TemporaryDirectory(prefix="steer-envoy-")
