#!/usr/bin/env python3
"""Both services with a real OpenTelemetry receiver, and with one that is gone.

    python trial.py --binaries FOLDER

Needs the package rotel. Fails if a span lacks something, or has something of the prompt.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import rotel

REPOSITORY = Path(__file__).parents[2]
AGENT = Path(rotel.__file__).parent / "rotel-agent"
TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
#: Words that no span has by chance.
SECRETS = ("zanzibar", "quicksilver")
PATIENCE_S = 60
#: A drain, the last spans' time, and a busy machine.
STOP_S = 20


def free_addresses() -> list[str]:
    """Two that nobody listens on. Not of 127.0.0.1, which connections go out from: one of them
    could take a port before its server does."""
    with socket.socket() as one, socket.socket() as other:
        for probe in (one, other):
            probe.bind(("127.0.0.2", 0))
        return [":".join(map(str, probe.getsockname())) for probe in (one, other)]


def wait_for(what: str, found: Callable[[], bool], log: Path) -> None:
    """Waits for what a log shows."""
    started = time.monotonic()
    while not found():
        if time.monotonic() - started > PATIENCE_S:
            raise TimeoutError(f"{what}: not within {PATIENCE_S} s:\n{log.read_text()[-3000:]}")
        time.sleep(0.05)


class Program:
    """A child process with its output in a file."""

    def __init__(self, folder: Path, stack: ExitStack, args: list[str], env: dict[str, str]):
        self.log = folder / f"{Path(args[0]).name}-{time.monotonic_ns()}.log"
        with self.log.open("wb") as file:
            self.process = subprocess.Popen(
                args, stdout=file, stderr=file, env={**os.environ, **env}
            )
        stack.callback(self.process.kill)

    def said(self) -> str:
        """All that it said, without colours."""
        return re.sub(r"\x1b\[[0-9;]*m", "", self.log.read_text())

    def stop(self) -> float:
        """SIGTERM; seconds until it had ended in an orderly way."""
        started = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(timeout=STOP_S)
        assert code == 0, f"ended with {code}:\n{self.said()[-3000:]}"
        return time.monotonic() - started


def services(
    binaries: Path, folder: Path, stack: ExitStack, collector: str
) -> tuple[list[Program], dict[str, str]]:
    """Both services, sending spans; where they are, as the command's environment."""
    worker, registry = free_addresses()
    model, data = str(REPOSITORY / "demo/model"), str(folder / "data")
    programs = [
        # One is told by a flag, the other by OpenTelemetry's own variable.
        Program(
            folder,
            stack,
            [f"{binaries}/steer-worker", "--model", model, "--listen", worker]
            + ["--otlp-endpoint", collector],
            {},
        ),
        Program(
            folder,
            stack,
            [f"{binaries}/steer-registry", "--data", data, "--listen", registry],
            {"OTEL_EXPORTER_OTLP_ENDPOINT": collector, "OTEL_SERVICE_NAME": "our-registry"},
        ),
    ]
    for program in programs:
        wait_for("a service", lambda program=program: "listening on" in program.said(), program.log)
    where = {"STEER_WORKER": f"http://{worker}", "STEER_REGISTRY": f"http://{registry}"}
    return programs, where


def steer(binaries: Path, where: dict[str, str], *args: str) -> str:
    """Runs the command within a trace."""
    trace = {"TRACEPARENT": f"00-{TRACE}-{PARENT}-01"}
    done = subprocess.run(
        [f"{binaries}/steer", *args],
        env={**os.environ, **where, **trace},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def check(received: str, generated: str) -> None:
    """What the receiver printed of the spans."""
    for wanted in (
        "steering.v1.ModelWorkerService/Generate",
        "steering.v1.FeatureRegistryService/ListSaes",
        "steer-worker",
        "our-registry",
        TRACE,
        PARENT,
        "steer.request_id",
        "rpc.grpc.status_code",
        "gen_ai.request.model",
        "gen_ai.request.max_tokens",
        "gen_ai.usage.input_tokens",
        "gen_ai.usage.output_tokens",
        "gen_ai.server.time_to_first_token",
    ):
        assert wanted in received, f"{wanted} is not among the spans:\n{received[-5000:]}"
    # Single words of the text may well be words of a span ("listen").
    words = generated.lower().split()
    phrases = [" ".join(words[at : at + 3]) for at in range(len(words) - 2)]
    assert phrases, f"too little was generated: {generated!r}"
    for secret in (*SECRETS, *phrases):
        assert secret not in received.lower(), f"{secret!r} was sent"
    for span in re.split(r"\bSpan #", received)[1:]:
        assert TRACE in span, f"a span is not of the caller's trace:\n{span}"


def main() -> None:
    """Runs both parts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--binaries", type=Path, required=True)
    binaries = parser.parse_args().binaries
    with tempfile.TemporaryDirectory(prefix="steer-otlp-") as name, ExitStack() as stack:
        folder, (grpc, http) = Path(name), free_addresses()
        command = [str(AGENT), "start", "--otlp-grpc-endpoint", grpc]
        command += ["--otlp-http-endpoint", http]
        command += ["--exporter", "blackhole", "--debug-log", "traces"]
        command += ["--debug-log-verbosity", "detailed", "--pid-file", f"{folder}/pid"]
        receiver = Program(folder, stack, command, {})
        wait_for("rotel", lambda: "Starting Rotel" in receiver.said(), receiver.log)
        programs, where = services(binaries, folder, stack, f"http://{grpc}")
        prompt = f"Write about {' and '.join(SECRETS)}."
        generated = steer(binaries, where, "generate", prompt, "--greedy")
        steer(binaries, where, "saes", "list")
        took = [program.stop() for program in programs]
        wait_for("spans", lambda: "ListSaes" in receiver.said(), receiver.log)
        wait_for("spans", lambda: "/Generate" in receiver.said(), receiver.log)
        check(receiver.said(), generated)
        print(f"otlp: spans of both services received; stopped in {took[0]:.1f}, {took[1]:.1f} s")
        receiver.process.kill()
        receiver.process.wait()
        programs, where = services(binaries, folder, stack, f"http://{grpc}")
        steer(binaries, where, "generate", "Hello.", "--max-new-tokens", "4")
        took = [program.stop() for program in programs]
        print(f"otlp: served without a receiver; stopped in {took[0]:.1f}, {took[1]:.1f} s")


if __name__ == "__main__":
    main()
