"""Where the services are, how to reach them, and when to ask again."""

from __future__ import annotations

import os
import random
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import grpc

from steer import checks
from steer.errors import Overloaded, SteerError, Unavailable
from steer.rpc import Service

#: Largest answer accepted: a page of features of a wide model fits many times.
ANSWER_BYTES_MAX = 256 << 20
#: gRPC takes much longer times for ones that are over.
ATTEMPT_S_MAX = 1e9


def _from_env(name: str) -> str | None:
    return os.environ.get(name) or None


@dataclass(frozen=True)
class Tls:
    """Certificates for `https://` services, PEM files; defaults come from the environment."""

    #: Authorities to trust instead of the system's. Default: STEER_CA_CERT.
    ca: Path | str | None = field(default_factory=lambda: _from_env("STEER_CA_CERT"))
    #: Our certificate, for services that ask for one (mTLS). Default: STEER_CLIENT_CERT.
    cert: Path | str | None = field(default_factory=lambda: _from_env("STEER_CLIENT_CERT"))
    #: Its key. Default: STEER_CLIENT_KEY.
    key: Path | str | None = field(default_factory=lambda: _from_env("STEER_CLIENT_KEY"))
    #: The name to expect in the service's certificate, if it is not the URL's host.
    server_name: str | None = None


@dataclass(frozen=True)
class Retry:
    """How often, and how long after a failure, a call is made again.

    UNAVAILABLE is retried, RESOURCE_EXHAUSTED where the service says when (RetryInfo): a
    request that is too large stays too large. Never beyond the call's deadline, and never
    after the first message of a stream.
    """

    #: Times that a call is made; 1 = never again.
    attempts: int = 5
    #: Seconds before the second attempt, twice as many before each further one.
    backoff_s: float = 0.1
    #: The most of them.
    backoff_max_s: float = 5.0

    def __post_init__(self) -> None:
        checks.whole(self.attempts, "retry.attempts", least=1)
        for name in ("backoff_s", "backoff_max_s"):
            checks.seconds(getattr(self, name), f"retry.{name}")

    def delay_s(self, error: SteerError, attempt: int, remaining_s: float) -> float | None:
        """Seconds to wait before attempt `attempt` + 1, or None to give up."""
        temporary = isinstance(error, Unavailable) or (
            isinstance(error, Overloaded) and error.retry_after_s is not None
        )
        if not temporary or attempt >= self.attempts:
            return None
        # No more than a float holds.
        backoff = min(self.backoff_s * 2.0 ** min(attempt - 1, 1000), self.backoff_max_s)
        # Jitter keeps refused clients from coming back all at once.
        delay = max(error.retry_after_s or 0.0, backoff) * random.uniform(1.0, 1.25)
        return delay if delay < remaining_s else None


def _api_key() -> str | None:
    path = _from_env("STEER_API_KEY_FILE")
    return Path(path).read_text().strip() if path else _from_env("STEER_API_KEY")


def _traceparent() -> str | None:
    """The trace that a call is part of: OpenTelemetry's current span in programs that use it,
    else TRACEPARENT."""
    tracing: Any = sys.modules.get("opentelemetry.trace")
    if tracing is not None:
        span = tracing.get_current_span().get_span_context()
        if span.is_valid:
            return f"00-{span.trace_id:032x}-{span.span_id:016x}-{int(span.trace_flags):02x}"
    return _from_env("TRACEPARENT")


@dataclass(frozen=True)
class Config:
    """How a client reaches the services. Defaults come from the environment, as the command's."""

    #: `http://host:port`, `https://host:port`, or `host:port`. Default: STEER_WORKER.
    worker: str = field(
        default_factory=lambda: _from_env("STEER_WORKER") or "http://127.0.0.1:50051"
    )
    #: The same for the registry. Default: STEER_REGISTRY.
    registry: str = field(
        default_factory=lambda: _from_env("STEER_REGISTRY") or "http://127.0.0.1:50052"
    )
    #: Sent with every call. Default: the content of STEER_API_KEY_FILE, or STEER_API_KEY.
    api_key: str | None = field(default_factory=_api_key, repr=False)
    tls: Tls = field(default_factory=Tls)
    #: Seconds for one call, retries included. Generations and captures get `stream_timeout_s`.
    timeout_s: float = 60.0
    stream_timeout_s: float = 600.0
    retry: Retry = Retry()

    def __post_init__(self) -> None:
        checks.seconds(self.timeout_s, "timeout_s")
        checks.seconds(self.stream_timeout_s, "stream_timeout_s")

    def limit_s(self, timeout: float | None, *, streams: bool) -> float:
        """Seconds for one call: the caller's `timeout`, or the default if that is None."""
        if timeout is not None:
            return checks.seconds(timeout, "timeout")
        return self.stream_timeout_s if streams else self.timeout_s

    def address(self, service: Service) -> Address:
        """Where a service is."""
        url = self.worker if service is Service.WORKER else self.registry
        return Address.parse(url)

    def metadata(self) -> tuple[tuple[str, str], ...]:
        """What goes with every call."""
        metadata = []
        if self.api_key is not None:
            metadata.append(("authorization", f"Bearer {self.api_key}"))
        traceparent = _traceparent()
        if traceparent is not None:
            metadata.append(("traceparent", traceparent))
        return tuple(metadata)

    def credentials(self) -> grpc.ChannelCredentials:
        """What TLS connections are made with."""

        def read(path: Path | str | None) -> bytes | None:
            return None if path is None else Path(path).read_bytes()

        tls = self.tls
        if (tls.cert is None) != (tls.key is None):
            raise ValueError("tls: cert and key go together; give both or neither")
        return grpc.ssl_channel_credentials(read(tls.ca), read(tls.key), read(tls.cert))

    def channel_options(self) -> list[tuple[str, str | int]]:
        """What both kinds of channel are made with."""
        options: list[tuple[str, str | int]] = [
            ("grpc.max_receive_message_length", ANSWER_BYTES_MAX),
            ("grpc.max_send_message_length", -1),
            ("grpc.keepalive_time_ms", 30_000),
            ("grpc.keepalive_timeout_ms", 20_000),
            # Retries are ours: they honour RetryInfo.
            ("grpc.enable_retries", 0),
            # A name that stands for several workers is one pool, not the first of them.
            ("grpc.lb_policy_name", "round_robin"),
        ]
        if self.tls.server_name is not None:
            options.append(("grpc.ssl_target_name_override", self.tls.server_name))
        return options


@dataclass(frozen=True)
class Address:
    """A service's host and port, and whether it speaks TLS."""

    target: str
    tls: bool

    @classmethod
    def parse(cls, url: str) -> Address:
        """Reads `http://host:port`, `https://host:port` or `host:port`."""
        parts = urlsplit(url if "://" in url else f"http://{url}")
        try:
            host, port = parts.hostname, parts.port
        except ValueError:
            host = port = None
        if parts.scheme not in ("http", "https") or not host or parts.path not in ("", "/"):
            raise ValueError(f"{url!r} is no service; write http://HOST:PORT or https://HOST:PORT")
        port = port or (443 if parts.scheme == "https" else 80)
        host = f"[{host}]" if ":" in host else host
        return cls(f"{host}:{port}", parts.scheme == "https")


class Attempts:
    """The attempts of one call: counts them, and keeps its deadline."""

    def __init__(self, retry: Retry, timeout_s: float) -> None:
        self._retry = retry
        self._ends_at = time.monotonic() + timeout_s
        self._made = 0

    def remaining_s(self) -> float:
        """Seconds left, to be given to the next attempt."""
        # Never 0, which is over before it began: a pause may end a little late.
        return min(max(self._ends_at - time.monotonic(), 0.001), ATTEMPT_S_MAX)

    def pause_s(self, error: SteerError, *, retriable: bool) -> float:
        """Seconds to wait before the next attempt; raises the error if there is none."""
        self._made += 1
        if retriable:
            delay = self._retry.delay_s(error, self._made, self.remaining_s())
            if delay is not None:
                return delay
        raise error from None
