"""Arguments that are refused before any service is asked: none listens here."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from steer import AsyncClient, Client, Config, Retry, corpus

HOOK = "blocks.3.hook_resid_post"
NOWHERE = "127.0.0.1:9"


@pytest.fixture
def client() -> Client:
    return Client(config())


def config(**settings: Any) -> Config:
    return Config(NOWHERE, NOWHERE, api_key=None, retry=Retry(attempts=1), **settings)


def ask_async(ask: Callable[[AsyncClient], Any]) -> Any:
    async def asked() -> Any:
        async with AsyncClient(config()) as client:
            answer = ask(client)
            return [one async for one in answer] if hasattr(answer, "aclose") else await answer

    return asyncio.run(asked())


def test_one_text_is_not_several(client: Client) -> None:
    says = r"texts: is one text, 'hello world'; pass a list: \['hello world'\]"
    # When it is called, not when the first answer is awaited.
    with pytest.raises(TypeError, match=says):
        client.capture("hello world", HOOK)
    with pytest.raises(TypeError, match=says):
        client.activations("hello world", HOOK)
    with pytest.raises(TypeError, match=says):
        ask_async(lambda several: several.capture("hello world", HOOK))
    with pytest.raises(TypeError, match=says):
        ask_async(lambda several: several.activations("hello world", HOOK))
    with pytest.raises(TypeError, match=says):
        corpus.shard("hello world", 0, 1)
    with pytest.raises(TypeError, match=r"texts: is one text, b'hello'"):
        client.capture(b"hello", HOOK)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="xxx…; pass a list"):
        client.capture("x" * 1000, HOOK)


def test_options_of_a_capture_are_read_when_it_is_called(client: Client) -> None:
    with pytest.raises(TypeError, match="capture: no option 'skip'"):
        client.capture(["a"], HOOK, skip=1)  # type: ignore[call-arg]
    with pytest.raises(ValueError, match="pooling: 'max' is none of"):
        client.capture(["a"], HOOK, pooling="max")  # type: ignore[arg-type]
