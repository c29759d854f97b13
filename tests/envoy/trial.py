#!/usr/bin/env python3
"""Envoy in front of three real workers: round robin, retries, ejection, rolling restarts.

    python trial.py --envoy ENVOY --worker STEER_WORKER [--rollouts 5] [--streams 24]

Needs the Python package (client/python) and pyyaml. Clients do not retry here, so what
Envoy does not mend is counted as failed. Prints figures; fails if one is out of bounds.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import numpy as np
from fleet import Fleet, Worker, folder
from steer import AsyncClient, Config, InvalidRequest, Retry, SteerError, VectorEdit

HOOK = "blocks.3.hook_resid_post"
D_MODEL = 128


@dataclass
class Load:
    """Clients that generate steered text without a pause, and what became of it."""

    config: Config
    streams: int
    done: int = 0
    tokens: int = 0
    failures: list[str] = field(default_factory=list)
    _stopping: bool = False

    async def run(self) -> None:
        """Until `stop`."""
        async with AsyncClient(self.config) as client:
            await asyncio.gather(*(self._client(client, number) for number in range(self.streams)))

    def stop(self) -> None:
        """Lets running generations end."""
        self._stopping = True

    async def _client(self, client: AsyncClient, number: int) -> None:
        rng = np.random.default_rng(number)
        while not self._stopping:
            edit = VectorEdit(rng.normal(size=D_MODEL), HOOK, 0.5)
            try:
                generation = await client.generate(
                    "Write a haiku.",
                    cav=edit,
                    max_new_tokens=int(rng.integers(8, 96)),
                    ignore_eos=True,
                )
                self.done += 1
                self.tokens += len(generation[0].token_ids)
            except SteerError as error:
                self.failures.append(f"{error}")


def config(fleet: Fleet) -> Config:
    """Through Envoy, without retries of the client's own."""
    url = f"http://{fleet.address}"
    return Config(url, url, api_key=None, retry=Retry(attempts=1))


async def round_robin(fleet: Fleet) -> None:
    """One connection's calls go to all workers alike."""
    before = {address: int(figures["rq_total"]) for address, figures in fleet.hosts().items()}
    async with AsyncClient(config(fleet)) as client:
        for _ in range(20):
            await asyncio.gather(
                *(client.generate("Hi", raw=True, max_new_tokens=2, seed=i) for i in range(15))
            )
    counts = [int(figures["rq_total"]) - before[a] for a, figures in sorted(fleet.hosts().items())]
    print(f"round robin: 300 calls over one connection went {counts}")
    assert sum(counts) == 300
    assert max(counts) - min(counts) <= 15, "not round robin"


async def retries(fleet: Fleet) -> None:
    """UNAVAILABLE is tried elsewhere; what is the caller's fault is not."""
    async with AsyncClient(config(fleet)) as client:
        before = fleet.stat("upstream_rq_retry")
        for _ in range(6):
            try:
                await client.generate("Hi", raw=True, top_p=7.0)
                raise AssertionError("top_p 7 was accepted")
            except InvalidRequest:
                pass
        assert fleet.stat("upstream_rq_retry") == before, "INVALID_ARGUMENT was retried"
        # Killed between two health checks: Envoy still believes in it.
        victim = fleet.workers[0]
        victim.stop(signal.SIGKILL)
        calls = (client.generate("Hi", raw=True, max_new_tokens=2) for _ in range(30))
        answered = await asyncio.gather(*calls, return_exceptions=True)
    failed = [one for one in answered if isinstance(one, BaseException)]
    retried = fleet.stat("upstream_rq_retry") - before
    print(f"retries: worker killed, {retried} calls retried, {len(failed)} of 30 failed")
    assert not failed, failed
    victim.start()
    fleet.wait_until_healthy(victim)


async def rolling_restarts(fleet: Fleet, rollouts: int, streams: int) -> None:
    """Every worker is replaced, one after the other, under load; nobody notices."""
    load = Load(config(fleet), streams)
    running = asyncio.create_task(load.run())
    started, restarts = time.monotonic(), []
    for _ in range(rollouts):
        for worker in fleet.workers:
            restarts.append(await asyncio.to_thread(restart, fleet, worker))
    load.stop()
    await running
    seconds = time.monotonic() - started
    print(
        f"rolling restarts: {rollouts} × {len(fleet.workers)} workers under {streams} streams: "
        f"{load.done} generations ({load.tokens} tokens, {load.tokens / seconds:.0f} tok/s), "
        f"{len(load.failures)} failed; SIGTERM to healthy again {min(restarts):.1f} to "
        f"{max(restarts):.1f} s"
    )
    assert load.done >= streams * rollouts, "there was no load"
    assert not load.failures, load.failures[:5]


def restart(fleet: Fleet, worker: Worker) -> float:
    """SIGTERM to healthy again, in seconds."""
    started = time.monotonic()
    code = worker.stop()
    assert code == 0, f"the worker ended with {code} at SIGTERM"
    worker.start()
    fleet.wait_until_healthy(worker)
    return time.monotonic() - started


class Broken(grpc.GenericRpcHandler):
    """Says SERVING, and fails every call with INTERNAL."""

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        """Handles any method."""
        if details.method == "/grpc.health.v1.Health/Check":
            return grpc.unary_unary_rpc_method_handler(lambda request, context: b"\x08\x01")

        def fail(request: bytes, context: grpc.ServicerContext) -> bytes:
            context.abort(grpc.StatusCode.INTERNAL, "broken")
            return b""

        return grpc.unary_unary_rpc_method_handler(fail)


async def ejection(fleet: Fleet) -> None:
    """A worker that only fails is left out, though it says that it is well."""
    async with AsyncClient(config(fleet)) as client:
        failed, last = 0, 0
        for call in range(60):
            try:
                await client.generate("Hi", raw=True, max_new_tokens=1)
            except SteerError:
                failed, last = failed + 1, call
    ejected = fleet.stat("outlier_detection.ejections_enforced_total")
    print(f"ejection: a worker that fails every call got {failed} of 60, the last was call {last}")
    assert ejected == 1
    assert failed <= 6


async def trial(arguments: argparse.Namespace, scratch: Path) -> None:
    """All parts, on two fleets."""
    broken = grpc.server(ThreadPoolExecutor(4), handlers=[Broken()])
    port = broken.add_insecure_port("127.0.0.1:0")
    broken.start()
    worker = Worker(arguments.worker, scratch, "127.0.0.2")
    await on_fleet(
        Fleet(arguments.envoy, [worker], scratch, others=[f"127.0.0.1:{port}"]), ejection
    )
    broken.stop(None)

    async def the_rest(fleet: Fleet) -> None:
        await round_robin(fleet)
        await retries(fleet)
        await rolling_restarts(fleet, arguments.rollouts, arguments.streams)

    workers = [Worker(arguments.worker, scratch, f"127.0.0.{host}") for host in (2, 3, 4)]
    await on_fleet(Fleet(arguments.envoy, workers, scratch), the_rest)


async def on_fleet(fleet: Fleet, part: Callable[[Fleet], Awaitable[None]]) -> None:
    """Starts the fleet, runs a part of the trial, stops the fleet."""
    try:
        await asyncio.to_thread(fleet.start)
        await part(fleet)
    finally:
        fleet.stop()


def main() -> None:
    """Runs the trial."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--envoy", type=Path, required=True)
    parser.add_argument("--worker", type=Path, required=True)
    parser.add_argument("--rollouts", type=int, default=1)
    parser.add_argument("--streams", type=int, default=24)
    with folder() as scratch:
        asyncio.run(trial(parser.parse_args(), Path(scratch)))
    print("envoy: all bounds held")


if __name__ == "__main__":
    main()
