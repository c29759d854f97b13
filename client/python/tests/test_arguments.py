"""Arguments that are refused before any service is asked: none listens here."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from typing import Any

import pytest

from steer import AsyncClient, Client, Config, Retry, Unavailable, corpus

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


@pytest.mark.parametrize("wrong", [0, 0.0, -1, math.nan, math.inf, True, "30"])
def test_a_time_is_finite_and_above_0(client: Client, wrong: Any) -> None:
    says = f": is {wrong!r}; must be a finite number above 0"
    for setting in ("timeout_s", "stream_timeout_s"):
        with pytest.raises(ValueError, match=f"^{setting}{says}"):
            Config(**{setting: wrong})
    asks: list[Callable[[Any], Any]] = [
        # Before the feature is asked for.
        lambda any_client: any_client.generate("hi", feature={"sea": 1}, timeout=wrong),
        lambda any_client: any_client.stream("hi", timeout=wrong),
        lambda any_client: any_client.sweep("hi", [1], cav="birds", timeout=wrong),
        lambda any_client: any_client.score("hi", "there", feature={"sea": 1}, timeout=wrong),
        lambda any_client: any_client.tokenize("hi", timeout=wrong),
        lambda any_client: any_client.capture(["hi"], HOOK, timeout=wrong),
        lambda any_client: any_client.activations(["hi"], HOOK, timeout=wrong),
    ]
    for ask in asks:
        with pytest.raises(ValueError, match=f"^timeout{says}"):
            ask(client)
        with pytest.raises(ValueError, match=f"^timeout{says}"):
            ask_async(ask)


@pytest.mark.parametrize("timeout", [None, 1e12])
def test_no_time_is_the_default_and_a_long_one_is_no_short_one(
    client: Client, timeout: float | None
) -> None:
    options: Any = {"timeout": timeout}
    with pytest.raises(Unavailable):
        client.generate("hi", **options)
    with pytest.raises(Unavailable):
        client.tokenize("hi", **options)
    with pytest.raises(Unavailable):
        ask_async(lambda several: several.activations(["hi"], HOOK, **options))
