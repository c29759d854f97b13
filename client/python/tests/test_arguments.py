"""Arguments that are refused before any service is asked: none listens here."""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from steer import (
    AsyncClient,
    CavEdit,
    Client,
    Config,
    FeatureEdit,
    Retry,
    Unavailable,
    VectorEdit,
    compose,
    corpus,
    v1,
)

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


@pytest.mark.parametrize(
    ("field", "wrong", "allowed"),
    [
        *(("attempts", wrong, "1 to 2^32-1") for wrong in (0, -1, 1.5, math.inf, True, "3", None)),
        *(
            (field, wrong, "a finite number above 0")
            for field in ("backoff_s", "backoff_max_s")
            for wrong in (0, -0.1, math.nan, math.inf, True, "1", None)
        ),
    ],
)
def test_a_retry_names_what_is_wrong(field: str, wrong: Any, allowed: str) -> None:
    says = f"retry.{field}: is {wrong!r}; must be {allowed}"
    with pytest.raises(ValueError, match=f"^{re.escape(says)}$"):
        Retry(**{field: wrong})


def test_any_number_of_attempts_has_a_backoff() -> None:
    retry = Retry(attempts=2**32 - 1)
    error = Unavailable("stopping")
    delays = [retry.delay_s(error, attempt, math.inf) for attempt in (1, 2, 3, 5000, 2**31)]
    assert all(delay is not None for delay in delays)
    for delay, backoff in zip(delays, (0.1, 0.2, 0.4, 5.0, 5.0), strict=True):
        assert backoff <= (delay or 0.0) <= 1.25 * backoff


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


@pytest.mark.parametrize(
    ("option", "wrong", "says"),
    [
        ("seed", -1, "is -1; must be 0 to 2^64-1"),
        ("seed", 2**64, f"is {2**64}; must be 0 to 2^64-1"),
        ("seed", True, "is True; must be 0 to 2^64-1"),
        ("seed", 1.5, "is 1.5; must be 0 to 2^64-1"),
        ("max_new_tokens", 0, "is 0; must be 1 to 2^32-1"),
        ("max_new_tokens", "3", "is '3'; must be 1 to 2^32-1"),
        ("top_k", np.bool_(True), "must be 0 to 2^32-1"),
        ("top_logprobs", 2**32, f"is {2**32}; must be 0 to 2^32-1"),
        ("temperature", math.nan, "is nan; must be a finite number"),
        ("temperature", True, "is True; must be a finite number"),
        ("top_p", "0.5", "is '0.5'; must be a finite number"),
        ("min_p", [], r"is []; must be a finite number"),
        ("repetition_penalty", math.inf, "is inf; must be a finite number"),
    ],
)
def test_sampling_names_what_is_wrong(client: Client, option: str, wrong: Any, says: str) -> None:
    options: Any = {option: wrong}
    with pytest.raises(
        ValueError, match=re.escape(f"sampling.{option}: ") + ".*" + re.escape(says)
    ):
        client.generate("hi", **options)


def test_what_sampling_allows_is_sent() -> None:
    options: Any = {
        "seed": np.uint64(2**64 - 1),
        "max_new_tokens": 1,
        "temperature": np.float32(0.5),
        "top_k": 0,
        "top_p": None,
        "stop": ["END"],
        "do_sample": False,
    }
    [request] = plan_of(compose.generate_request("hi", options))
    assert request.sampling == v1.Sampling(
        seed=2**64 - 1, max_new_tokens=1, temperature=0.5, top_k=0, stop=["END"], do_sample=False
    )
    [request] = plan_of(compose.generate_request([1, np.int64(2)], {"seed": None}))  # type: ignore[typeddict-item]
    assert not request.HasField("sampling")
    assert request.prompt.token_ids.ids == [1, 2]


def plan_of(plan: Any) -> list[Any]:
    """What a plan without calls comes to."""
    with pytest.raises(StopIteration) as done:
        next(plan)
    return [done.value.value]


NUMBER = "must be a finite number"


@pytest.mark.parametrize(
    ("ask", "says"),
    [
        (
            lambda c: c.generate("hi", feature={"baseball": None}),
            f"feature['baseball'].set: is None; {NUMBER}, or a fraction like \"0.5max\"",
        ),
        (lambda c: c.generate("hi", feature={"a": True}), "feature['a'].set: is True; "),
        (lambda c: c.generate("hi", feature={12: math.nan}), "feature[12].set: is nan; "),
        (lambda c: c.generate("hi", feature={True: 1}), "True is not a feature index"),
        (lambda c: c.generate("hi", feature="a:min=xmax"), "feature['a'].min: is 'xmax'; "),
        (
            lambda c: c.generate("hi", feature=FeatureEdit(v1.SaeFeature(label="a"), add=math.inf)),
            "feature['a'].add: is inf; ",
        ),
        (
            lambda c: c.generate("hi", feature="a:scale=2max"),
            f"feature['a'].scale: is '2max'; {NUMBER}$",
        ),
        (
            lambda c: c.generate("hi", cav={"birds": "much"}),
            f"cav['birds'].add: is 'much'; {NUMBER}, or a fraction like \"0.5norm\"",
        ),
        (lambda c: c.generate("hi", cav={"birds": None}), "cav['birds'].add: is None; "),
        (lambda c: c.generate("hi", cav={"birds": True}), "cav['birds'].add: is True; "),
        (lambda c: c.generate("hi", cav="birds:clamp=a..2"), "cav['birds'].clamp: is 'a'; "),
        (lambda c: CavEdit("birds", clamp=(math.nan, 2)), "cav['birds'].clamp: is nan; "),
        (lambda c: VectorEdit(np.ones(3), HOOK, True), "vector['vector'].strength: is True; "),
        (
            lambda c: c.generate("hi", stop_when="space>much"),
            f"threshold of 'space': is 'much'; {NUMBER}, or a fraction like \"0.5max\"",
        ),
        (
            lambda c: c.generate("hi", stop_when="cav:birds>1max"),
            f"threshold of 'cav:birds': is '1max'; {NUMBER}$",
        ),
        (lambda c: c.sweep("hi", [1, math.nan], cav="birds"), f"strengths[1]: is nan; {NUMBER}"),
        (lambda c: c.sweep("hi", [True], feature="a"), f"strengths[0]: is True; {NUMBER}"),
        (lambda c: c.generate([1, -1]), "prompt.token_ids.ids[1]: is -1; must be 0 to 2^32-1"),
        (lambda c: c.generate([1, 1.5]), "prompt.token_ids.ids[1]: is 1.5; "),
        (lambda c: c.score("hi", [2**32]), "token_ids.ids[0]: is 4294967296; "),
        (lambda c: c.capture(["a"], HOOK, max_tokens=-1), "max_tokens: is -1; must be 0 to 2^32-1"),
        (lambda c: c.capture(["a"], HOOK, skip_tokens=True), "skip_tokens: is True; "),
        (lambda c: c.project([1.0], top=-1), "top: is -1; must be 0 to 2^32-1"),
        (lambda c: c.registry.similar("a", top=-1), "top: is -1; "),
        (lambda c: c.registry.encode([1.0], top=-1), "top: is -1; "),
        (lambda c: c.registry.features("a", index=-1), "index: is -1; "),
        (lambda c: c.registry.search("a", limit=-1), "limit: is -1; "),
        (lambda c: train(c, seed=-1), "seed: is -1; must be 0 to 2^64-1"),
        (lambda c: train(c, null_trials=1.5), "null_trials: is 1.5; must be 0 to 2^32-1"),
        (lambda c: train(c, held_out=math.nan), f"held_out: is nan; {NUMBER}"),
        (
            lambda c: c.registry.import_sae("a", name="a", activation_scale=math.nan),
            f"activation_scale: is nan; {NUMBER}",
        ),
    ],
)
def test_what_is_wrong_is_named(client: Client, ask: Callable[[Client], Any], says: str) -> None:
    end = "$" if says.endswith("$") else ""
    with pytest.raises(ValueError, match="^" + re.escape(says.removesuffix("$")) + end):
        ask(client)


def train(client: Client, labels: Any = ("a",), **options: Any) -> Any:
    return client.registry.train_cavs([[1.0]], labels, hook=HOOK, model_id="m", **options)


@pytest.mark.parametrize(
    ("ask", "name"),
    [
        (lambda c: c.generate("hi", stop="END"), "sampling.stop"),
        (lambda c: c.sweep("hi", "123", cav="birds"), "strengths"),
        (lambda c: c.registry.similar("a", within="demo"), "within"),
        (lambda c: train(c, labels="a"), "labels"),
    ],
)
def test_lists_are_no_text(client: Client, ask: Callable[[Client], Any], name: str) -> None:
    with pytest.raises(TypeError, match=f"^{name}: is one text, "):
        ask(client)


def test_places_without_edits_are_refused(client: Client) -> None:
    for name, value in (("positions", "prompt"), ("when", "space>3")):
        with pytest.raises(ValueError, match=f"{name}: nothing is edited; give feature="):
            client.generate("hi", **{name: value})  # type: ignore[arg-type]
        with pytest.raises(ValueError, match=f"{name}: nothing is edited; give feature="):
            client.score("hi", "you", **{name: value})  # type: ignore[arg-type]
