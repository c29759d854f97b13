"""Activations of texts, as numpy arrays."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypedDict

import numpy as np
from numpy.typing import NDArray

from steer import checks, compose, v1
from steer.errors import ContractError

#: Texts sent and not yet answered; the worker reads no further ahead than it must.
TEXTS_UNDER_WAY = 64

_DROPS: dict[int, str] = {
    v1.CAPTURE_DROP_TOO_SHORT: "too short: no tokens left after skipping",
    v1.CAPTURE_DROP_NOT_FINITE: "activations not finite",
}


class CaptureOptions(TypedDict, total=False):
    """What is read of every text."""

    #: "mean" (default): one vector per text, BOS left out; "per_token": one per token.
    pooling: Literal["mean", "per_token"]
    #: Leading tokens left out of the mean.
    skip_tokens: int
    #: Texts are cut to this many tokens; default: the whole context.
    max_tokens: int
    #: Read each text as a user message in the chat template; default: as raw text.
    chat: bool
    #: Seconds for the whole capture.
    timeout: float


@dataclass(frozen=True)
class Captured:
    """The activations of one text."""

    #: Its place among the texts, from 0.
    index: int
    #: [width] for a mean, [n_tokens, width] per token; empty if dropped.
    activations: NDArray[np.float32] = field(repr=False)
    n_tokens: int
    #: Ids of the tokens read; per token only.
    token_ids: list[int] = field(repr=False)
    #: Why there are no activations; empty if there are.
    dropped: str = ""


class Requests(Iterator[v1.CaptureActivationsRequest]):
    """The configuration, then every text.

    Where gRPC takes them, nobody hears what is raised: what the texts raise ends them, and is
    kept for the caller to `raise_failure` once all before it are answered.
    """

    def __init__(self, messages: Iterator[v1.CaptureActivationsRequest]) -> None:
        self._messages = messages
        self._failure: Exception | None = None

    def __next__(self) -> v1.CaptureActivationsRequest:
        try:
            return next(self._messages)
        except StopIteration:
            raise
        except Exception as failure:
            self._failure = failure
            raise StopIteration from None

    def raise_failure(self) -> None:
        """Raises what the texts raised."""
        if self._failure is not None:
            raise self._failure


def requests(
    hook_name: str, texts: Iterable[str | Sequence[int]], options: CaptureOptions
) -> Requests:
    """What is sent; what is wrong with the options is said at once."""
    for name in options:
        if name not in CaptureOptions.__annotations__:
            known = ", ".join(CaptureOptions.__annotations__)
            raise TypeError(f"capture: no option {name!r}; there are {known}")
    several = checks.several(texts, "texts")
    max_tokens = checks.whole(options.get("max_tokens", 0), "max_tokens")
    config = v1.CaptureConfig(hook_name=hook_name, max_tokens=max_tokens)
    pooling = options.get("pooling", "mean")
    if pooling == "mean":
        skip_tokens = checks.whole(options.get("skip_tokens", 0), "skip_tokens")
        config.mean.CopyFrom(v1.MeanPooling(skip_tokens=skip_tokens))
    elif pooling == "per_token":
        config.per_token.SetInParent()
    else:
        raise ValueError(f'pooling: {pooling!r} is none of "mean", "per_token"')
    raw = {"raw": not options.get("chat", False)}

    def messages() -> Iterator[v1.CaptureActivationsRequest]:
        yield v1.CaptureActivationsRequest(config=config)
        for index, text in enumerate(several):
            prompt = compose.prompt_message(text, raw if isinstance(text, str) else {})
            yield v1.CaptureActivationsRequest(text=v1.CaptureText(id=index, prompt=prompt))

    return Requests(messages())


def read(response: v1.CaptureActivationsResponse) -> Captured | None:
    """A text's activations, or None for the summary at the end."""
    kind = response.WhichOneof("message")
    if kind == "summary":
        return None
    if kind != "text":
        raise ContractError("the worker sent a capture message of an unknown kind")
    text = response.text
    values = np.array(text.values, dtype=np.float32)
    token_ids = list(text.token_ids)
    if token_ids:
        values = values.reshape(len(token_ids), -1)
    dropped = "" if not text.dropped else _DROPS.get(text.dropped, "dropped")
    return Captured(text.id, values, text.n_tokens, token_ids, dropped)


def matrix(captured: Iterable[Captured]) -> NDArray[np.float32]:
    """One row per text, in the order of the texts; NaN for those that were dropped."""
    rows = sorted(captured, key=lambda one: one.index)
    width = max((one.activations.shape[-1] for one in rows if not one.dropped), default=0)
    empty = np.full(width, np.nan, dtype=np.float32)
    return (
        np.stack([empty if one.dropped else one.activations for one in rows])
        if rows
        else (np.empty((0, 0), dtype=np.float32))
    )
