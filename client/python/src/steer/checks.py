"""What arguments may be: errors that name the argument, its value, and what is allowed."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeVar

Item = TypeVar("Item")


def several(values: Iterable[Item], name: str) -> Iterable[Item]:
    """Refuses one text where several are asked for: it would be taken for its characters."""
    if isinstance(values, (str, bytes)):
        shown = _shown(values)
        raise TypeError(f"{name}: is one text, {shown}; pass a list: [{shown}]")
    return values


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}…"
