"""What arguments may be: errors that name the argument, its value, and what is allowed."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable
from typing import Any, TypeVar

import numpy as np

Item = TypeVar("Item")


def seconds(value: Any, name: str) -> float:
    """A time that a call may take."""
    return number(value, name, "a finite number above 0", above=0.0)


def number(
    value: Any, name: str, allowed: str = "a finite number", *, above: float = -math.inf
) -> float:
    """A finite number; neither text nor a truth value is one, though `float` takes both."""
    try:
        parsed = math.nan if isinstance(value, (str, bytes, bool, np.bool_)) else float(value)
    except (TypeError, ValueError, OverflowError):
        parsed = math.nan
    if not (math.isfinite(parsed) and parsed > above):
        raise refusal(value, name, allowed)
    return parsed


def whole(value: Any, name: str, *, least: int = 0, bits: int = 32) -> int:
    """A whole number that an unsigned integer of the contract holds."""
    try:
        parsed = -1 if isinstance(value, (bool, np.bool_)) else operator.index(value)
    except TypeError:
        parsed = -1
    if not least <= parsed < 2**bits:
        raise refusal(value, name, f"{least} to 2^{bits}-1")
    return parsed


def several(values: Iterable[Item], name: str) -> Iterable[Item]:
    """Refuses one text where several are asked for: it would be taken for its characters."""
    if isinstance(values, (str, bytes)):
        shown = _shown(values)
        raise TypeError(f"{name}: is one text, {shown}; pass a list: [{shown}]")
    return values


def refusal(value: Any, name: str, allowed: str) -> ValueError:
    """The error for a value that is not allowed."""
    return ValueError(f"{name}: is {_shown(value)}; must be {allowed}")


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}…"
