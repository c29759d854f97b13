"""TLS and API keys, against a real worker that asks for both."""

from __future__ import annotations

import hashlib
import json
import secrets
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import DEMO, start

import steer
from steer import Client, Config, Retry

HOST = "subjectAltName=IP:127.0.0.1"


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """A worker's address, and the folder with its certificate and two keys."""
    folder = tmp_path_factory.mktemp("secured")
    names = ["-keyout", str(folder / "tls.key"), "-out", str(folder / "tls.crt"), "-addext", HOST]
    request = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 1 -subj"
    subprocess.run([*request.split(), "/CN=worker", *names], check=True, capture_output=True)
    for name, scope in (("alice", "generate"), ("bob", "registry.read")):
        key = f"steer_{secrets.token_hex(32)}"
        (folder / f"{name}.key").write_text(key)
        digest = hashlib.sha256(key.encode()).hexdigest()
        entry = {"id": name, "sha256": digest, "scopes": [scope]}
        with (folder / "keys.jsonl").open("a") as file:
            file.write(json.dumps(entry) + "\n")
    settings = {
        "STEER_TLS_CERT": str(folder / "tls.crt"),
        "STEER_TLS_KEY": str(folder / "tls.key"),
        "STEER_API_KEYS": str(folder / "keys.jsonl"),
    }
    service = start(folder, "steer-worker", "--model", str(DEMO / "model"), env=settings)
    yield f"https://{service.address}", folder
    service.process.kill()
    service.process.wait()


def as_(secured: tuple[str, Path], name: str) -> Client:
    """A client with somebody's key."""
    url, folder = secured
    key = (folder / f"{name}.key").read_text() if name else None
    tls = steer.Tls(ca=folder / "tls.crt")
    return Client(Config(worker=url, registry=url, api_key=key, tls=tls))


def test_who_may_generate_generates(secured: tuple[str, Path]) -> None:
    with as_(secured, "alice") as client:
        assert client.generate("Write a haiku.", seed=7, max_new_tokens=3).text


def test_who_may_not_is_told(secured: tuple[str, Path]) -> None:
    with as_(secured, "") as client, pytest.raises(steer.NotPermitted, match="UNAUTHENTICATED"):
        client.model()
    with as_(secured, "bob") as client, pytest.raises(steer.NotPermitted, match="generate"):
        client.model()


def test_no_key_goes_to_somebody_else(secured: tuple[str, Path]) -> None:
    url, _ = secured
    for wrong in (url, url.replace("https", "http")):
        config = Config(worker=wrong, api_key="steer_secret", retry=Retry(attempts=1))
        with pytest.raises(steer.Unavailable):
            Client(config).model()
