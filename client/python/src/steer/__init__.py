"""Steer: language models with steered activations.

>>> import steer
>>> steer.generate("Write a haiku.", feature={"baseball": 525})

The module's own functions use one client with the environment's settings (STEER_WORKER,
STEER_REGISTRY, STEER_API_KEY). `Client` and `AsyncClient` take theirs.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Unpack

from steer import v1
from steer.aio import AsyncClient
from steer.capture import Captured
from steer.client import Client
from steer.connection import Config, Retry, Tls
from steer.edits import CavEdit, FeatureEdit, VectorEdit
from steer.errors import (
    ContractError,
    DeadlineExceeded,
    InvalidRequest,
    NotFound,
    NotPermitted,
    Overloaded,
    Refused,
    SteerError,
    Unavailable,
    Violation,
)
from steer.generation import Generation, Token, Variant
from steer.options import GenerateOptions, Prompt, SweepOptions
from steer.registry import Cav, Feature, Listing
from steer.sweeps import Point, Sweep

__all__ = [
    "AsyncClient",
    "Captured",
    "Cav",
    "CavEdit",
    "Client",
    "Config",
    "ContractError",
    "DeadlineExceeded",
    "Feature",
    "FeatureEdit",
    "Generation",
    "InvalidRequest",
    "Listing",
    "NotFound",
    "NotPermitted",
    "Overloaded",
    "Point",
    "Refused",
    "Retry",
    "SteerError",
    "Sweep",
    "Tls",
    "Token",
    "Unavailable",
    "Variant",
    "VectorEdit",
    "Violation",
    "client",
    "compare",
    "generate",
    "sweep",
    "v1",
]


@functools.cache
def client() -> Client:
    """The client behind the module's own functions."""
    return Client()


def generate(prompt: Prompt, **options: Unpack[GenerateOptions]) -> Generation:
    """See `Client.generate`."""
    return client().generate(prompt, **options)


def compare(prompt: Prompt, **options: Unpack[GenerateOptions]) -> Generation:
    """The same with the unsteered baseline beside it, in one batch."""
    options["compare"] = True
    return client().generate(prompt, **options)


def sweep(
    prompt: Prompt,
    strengths: Iterable[float],
    *,
    feature: str | int | None = None,
    cav: str | None = None,
    **options: Unpack[SweepOptions],
) -> Sweep:
    """See `Client.sweep`."""
    return client().sweep(prompt, strengths, feature=feature, cav=cav, **options)
