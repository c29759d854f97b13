"""Retries, deadlines, credentials and details of errors, against a service made for it."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2
from opentelemetry import trace

import steer
from steer import AsyncClient, Client, Config, Retry, v1
from steer.connection import Address
from steer.errors import DETAILS_KEY

Behaviour = Callable[[int, grpc.ServicerContext], None]


class Scripted(grpc.GenericRpcHandler):
    """Answers every method with empty messages, after `behaviour` has had its way."""

    def __init__(self) -> None:
        self.calls = 0
        self.metadata: dict[str, str] = {}
        self.behaviour: Behaviour = lambda call, context: None
        self.events: list[v1.GenerateResponse] = [
            v1.GenerateResponse(started=v1.GenerationStarted(variant_names=["a"])),
            v1.GenerateResponse(token=v1.GeneratedToken(text="hello")),
            v1.GenerateResponse(finished=v1.VariantFinished(finish_reason=1)),
        ]

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        self.metadata = dict(details.invocation_metadata)

        def stream(request: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
            self.calls += 1
            self.behaviour(self.calls, context)
            for event in self.events:
                yield event.SerializeToString()
                self.behaviour(-self.calls, context)

        def unary(request: bytes, context: grpc.ServicerContext) -> bytes:
            self.calls += 1
            self.behaviour(self.calls, context)
            return b""

        if details.method.endswith("/Generate"):
            return grpc.unary_stream_rpc_method_handler(stream)
        return grpc.unary_unary_rpc_method_handler(unary)


@pytest.fixture
def scripted() -> Iterator[Scripted]:
    handler = Scripted()
    server = grpc.server(ThreadPoolExecutor(4), handlers=[handler])
    handler.port = server.add_insecure_port("127.0.0.1:0")  # type: ignore[attr-defined]
    server.start()
    yield handler
    server.stop(None)


def config(scripted: Any, **settings: Any) -> Config:
    address = f"127.0.0.1:{scripted.port}"
    return Config(address, address, retry=Retry(attempts=3, backoff_s=0.01), **settings)


def fail(context: grpc.ServicerContext, code: grpc.StatusCode, *details: Any) -> None:
    status = status_pb2.Status(code=code.value[0], message="said no")
    for detail in details:
        packed = any_pb2.Any()
        packed.Pack(detail)
        status.details.append(packed)
    context.set_trailing_metadata([(DETAILS_KEY, status.SerializeToString())])
    context.abort(code, "said no")


def retry_after(seconds: float) -> error_details_pb2.RetryInfo:
    delay = duration_pb2.Duration()
    delay.FromNanoseconds(int(seconds * 1e9))
    return error_details_pb2.RetryInfo(retry_delay=delay)


@pytest.mark.parametrize("asynchronous", [False, True])
def test_refusals_are_retried_when_the_service_says(scripted: Scripted, asynchronous: bool) -> None:
    def busy_once(call: int, context: grpc.ServicerContext) -> None:
        if call == 1:
            fail(context, grpc.StatusCode.RESOURCE_EXHAUSTED, retry_after(0.3))

    async def generate() -> steer.Generation:
        async with AsyncClient(config(scripted)) as client:
            return await client.generate("hi", raw=True)

    scripted.behaviour = busy_once
    started = time.monotonic()
    if asynchronous:
        generation = asyncio.run(generate())
    else:
        generation = Client(config(scripted)).generate("hi", raw=True)
    assert (generation.text, scripted.calls) == ("hello", 2)
    assert time.monotonic() - started >= 0.3


def test_what_a_retry_cannot_help_is_not_retried(scripted: Scripted) -> None:
    for code, kind in (
        (grpc.StatusCode.RESOURCE_EXHAUSTED, steer.Overloaded),
        (grpc.StatusCode.INVALID_ARGUMENT, steer.InvalidRequest),
        (grpc.StatusCode.UNAUTHENTICATED, steer.NotPermitted),
        (grpc.StatusCode.INTERNAL, steer.SteerError),
    ):
        scripted.calls = 0
        scripted.behaviour = lambda call, context, code=code: fail(context, code)
        with pytest.raises(kind):
            Client(config(scripted)).model()
        assert scripted.calls == 1, code


def test_attempts_are_counted(scripted: Scripted) -> None:
    scripted.behaviour = lambda call, context: fail(context, grpc.StatusCode.UNAVAILABLE)
    with pytest.raises(steer.Unavailable):
        Client(config(scripted)).model()
    assert scripted.calls == 3
    with pytest.raises(steer.Unavailable):
        Client(config(scripted)).registry.delete_cav("a")
    assert scripted.calls == 4, "removing twice is not removing once"


def test_a_retry_never_outlasts_the_deadline(scripted: Scripted) -> None:
    scripted.behaviour = lambda call, context: fail(
        context, grpc.StatusCode.UNAVAILABLE, retry_after(30)
    )
    started = time.monotonic()
    with pytest.raises(steer.Unavailable) as refused:
        Client(config(scripted, timeout_s=1.0)).model()
    assert refused.value.retry_after_s == 30
    assert time.monotonic() - started < 1.0
    scripted.behaviour = lambda call, context: time.sleep(2)
    with pytest.raises(steer.DeadlineExceeded):
        Client(config(scripted, timeout_s=0.3)).model()
    with pytest.raises(steer.DeadlineExceeded):
        Client(config(scripted)).tokenize("hi", timeout=0.3)


def test_a_stream_that_has_begun_is_not_repeated(scripted: Scripted) -> None:
    def breaks(call: int, context: grpc.ServicerContext) -> None:
        if call < 0:
            fail(context, grpc.StatusCode.UNAVAILABLE)

    scripted.behaviour = breaks
    with pytest.raises(steer.Unavailable):
        Client(config(scripted)).generate("hi", raw=True)
    assert scripted.calls == 1


def test_a_stream_that_breaks_the_contract_is_an_error(scripted: Scripted) -> None:
    scripted.events.pop()
    with pytest.raises(steer.ContractError, match="before every variant had finished"):
        Client(config(scripted)).generate("hi", raw=True)
    scripted.events = [v1.GenerateResponse(token=v1.GeneratedToken())]
    with pytest.raises(steer.ContractError, match="not under way"):
        Client(config(scripted)).generate("hi", raw=True)


def test_every_end_has_a_name(scripted: Scripted) -> None:
    names = {}
    for end in set(v1.FinishReason.values()) - {v1.FINISH_REASON_UNSPECIFIED}:
        scripted.events[-1].finished.finish_reason = end
        [variant] = Client(config(scripted)).generate("hi", raw=True)
        names[end] = variant.finish_reason
    assert "unknown" not in names.values()
    assert names[v1.FINISH_REASON_NOT_FINITE] == "not_finite"


def test_violations_and_reasons_are_read(scripted: Scripted) -> None:
    bad = error_details_pb2.BadRequest()
    bad.field_violations.add(field="sampling.top_p", description="2 is not in (0, 1]")
    info = error_details_pb2.ErrorInfo(reason="QUEUE_FULL")
    scripted.behaviour = lambda call, context: fail(
        context, grpc.StatusCode.INVALID_ARGUMENT, bad, info
    )
    with pytest.raises(steer.InvalidRequest) as refused:
        Client(config(scripted)).model()
    error = refused.value
    assert error.violations == (steer.Violation("sampling.top_p", "2 is not in (0, 1]"),)
    assert (error.reason, str(error)) == ("QUEUE_FULL", "INVALID_ARGUMENT: said no")


def test_the_key_is_sent_and_not_shown(scripted: Scripted) -> None:
    with_key = config(scripted, api_key="secret-key")
    Client(with_key).model()
    assert scripted.metadata["authorization"] == "Bearer secret-key"
    assert "secret-key" not in repr(with_key)


def test_calls_are_part_of_the_callers_trace(
    scripted: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TRACEPARENT", raising=False)
    client = Client(config(scripted))
    client.model()
    assert "traceparent" not in scripted.metadata
    monkeypatch.setenv("TRACEPARENT", f"00-{'a' * 32}-{'b' * 16}-01")
    client.model()
    assert scripted.metadata["traceparent"] == f"00-{'a' * 32}-{'b' * 16}-01"
    with trace.use_span(trace.NonRecordingSpan(trace.SpanContext(1, 2, False))):
        client.model()
    assert scripted.metadata["traceparent"] == f"00-{1:032x}-{2:016x}-00"


def test_settings_come_from_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STEER_WORKER", "https://host")
    monkeypatch.setenv("STEER_API_KEY", "from-env")
    monkeypatch.setenv("STEER_CA_CERT", "ca.pem")
    config = Config()
    assert (config.worker, config.api_key, config.tls.ca) == ("https://host", "from-env", "ca.pem")
    (tmp_path / "key").write_text("from-file\n")
    monkeypatch.setenv("STEER_API_KEY_FILE", str(tmp_path / "key"))
    assert Config().api_key == "from-file"


def test_addresses() -> None:
    assert Address.parse("host:1") == Address("host:1", False)
    assert Address.parse("https://host") == Address("host:443", True)
    assert Address.parse("http://[::1]:5") == Address("[::1]:5", False)
    for wrong in ("ftp://host:1", "http://", "http://host:port", "http://host/path"):
        with pytest.raises(ValueError, match="is no service"):
            Address.parse(wrong)


def certificate(folder: Path, name: str) -> tuple[bytes, bytes]:
    """A self-signed certificate for 127.0.0.1, and its key."""
    cert, key = folder / f"{name}.crt", folder / f"{name}.key"
    request = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 1"
    names = ["-subj", f"/CN={name}", "-addext", "subjectAltName=IP:127.0.0.1"]
    files = ["-keyout", str(key), "-out", str(cert)]
    subprocess.run([*request.split(), *names, *files], check=True, capture_output=True)
    return cert.read_bytes(), key.read_bytes()


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl for certificates")
def test_mutual_tls(tmp_path: Path) -> None:
    server_cert, server_key = certificate(tmp_path, "server")
    client_cert, _ = certificate(tmp_path, "client")
    credentials = grpc.ssl_server_credentials(
        [(server_key, server_cert)], client_cert, require_client_auth=True
    )
    server = grpc.server(ThreadPoolExecutor(2), handlers=[Scripted()])
    port = server.add_secure_port("127.0.0.1:0", credentials)
    server.start()
    url = f"https://127.0.0.1:{port}"

    def model(tls: steer.Tls) -> v1.GetModelResponse:
        return Client(Config(url, url, tls=tls, timeout_s=5, retry=Retry(attempts=1))).model()

    ours = {"cert": tmp_path / "client.crt", "key": tmp_path / "client.key"}
    try:
        model(steer.Tls(ca=tmp_path / "server.crt", **ours))
        for wrong in (
            steer.Tls(ca=tmp_path / "client.crt", **ours),
            steer.Tls(ca=tmp_path / "server.crt"),
            steer.Tls(ca=tmp_path / "server.crt", server_name="other.example", **ours),
        ):
            with pytest.raises(steer.Unavailable):
                model(wrong)
    finally:
        server.stop(None)


def test_tls_needs_both_halves() -> None:
    with pytest.raises(ValueError, match="cert and key go together"):
        Config(tls=steer.Tls(cert="c.pem")).credentials()
