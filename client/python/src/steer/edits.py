"""Edits, readouts and conditions as a user names them, before the registry is asked.

They are written as objects of this module or as text, in the grammar of the `steer` command::

    FeatureEdit("baseball", set=525)          "baseball=525"
    FeatureEdit("#1234", min="0.5max")        "#1234:min=0.5max"
    CavEdit("rec.autos", add="0.1norm")       "rec.autos=0.1norm"
    CavEdit("rec.autos", clamp=(-5, 5))       "rec.autos:clamp=-5..5"
    "space>3:once"                            (a gate)
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from steer import checks, v1

#: A number in units of the activation, or text: "0.5max" for half of the largest activation known.
Amount = float | int | str


@dataclass(frozen=True)
class FeatureRef:
    """A feature by label or index, and the SAE it is of (None: the default one)."""

    sae: str | None
    key: str | int

    @classmethod
    def parse(cls, text: str | int) -> FeatureRef:
        """Reads LABEL, #INDEX, SAE::LABEL or SAE::#INDEX; an integer is an index."""
        if isinstance(text, int):
            return cls(None, _index(text))
        match = re.fullmatch(r"(?:([A-Za-z0-9._/-]*)::)?(.+)", text, flags=re.S)
        if match is None:
            raise ValueError(f"{text!r} names no feature; write LABEL, #INDEX or SAE::LABEL")
        sae, name = match.groups()
        if re.fullmatch(r"#[0-9]+", name):
            return cls(sae or None, _index(int(name[1:])))
        return cls(sae or None, name)

    def message(self, default_sae: str | None) -> v1.FeatureRef:
        """The registry's reference."""
        sae_id = self.sae or default_sae or ""
        if isinstance(self.key, int):
            return v1.FeatureRef(sae_id=sae_id, feature_index=self.key)
        return v1.FeatureRef(sae_id=sae_id, label=self.key)


def _index(index: int) -> int:
    if isinstance(index, bool) or not 0 <= index < 2**32:
        raise ValueError(f"{index} is not a feature index; it goes from 0 to {2**32 - 1}")
    return index


_OPERATIONS = ("set", "min", "max", "add", "scale")
_FEATURE_FORMS = (
    "write LABEL=VALUE, LABEL:min=VALUE, LABEL:max=VALUE, LABEL:add=VALUE, "
    "LABEL:scale=FACTOR or LABEL:ablate"
)
_CAV_FORMS = "write NAME=STRENGTH, NAME=FRACTIONnorm, NAME:ablate or NAME:clamp=LO..HI"


@dataclass(frozen=True, init=False)
class FeatureEdit:
    """An edit of one SAE feature: exactly one of `set`, `min`, `max`, `add`, `scale`.

    The feature is a label, an index, `SAE::LABEL`, or the registry's own message.
    """

    feature: FeatureRef | v1.SaeFeature
    operation: str
    amount: Amount

    def __init__(self, feature: str | int | v1.SaeFeature, **operation: Amount) -> None:
        if len(operation) != 1 or next(iter(operation)) not in _OPERATIONS:
            raise ValueError(f"{feature!r}: give exactly one of {', '.join(_OPERATIONS)}")
        [(name, amount)] = operation.items()
        ref = feature if isinstance(feature, v1.SaeFeature) else FeatureRef.parse(feature)
        object.__setattr__(self, "feature", ref)
        object.__setattr__(self, "operation", name)
        object.__setattr__(self, "amount", amount)
        _amount(amount, self.field, None if name == "scale" else "max")

    @classmethod
    def parse(cls, text: str) -> FeatureEdit:
        """Reads an edit as the command line writes it."""
        name, op, value = _split(text, (*_OPERATIONS, "ablate"), _FEATURE_FORMS)
        if op == "ablate":
            return cls(name, set=0.0)
        return cls(name, **{op or "set": value})

    @property
    def field(self) -> str:
        """How errors name its amount."""
        feature = self.feature
        if isinstance(feature, FeatureRef):
            return f"feature[{feature.key!r}].{self.operation}"
        return f"feature[{feature.label or feature.feature_index!r}].{self.operation}"


@dataclass(frozen=True)
class VectorEdit:
    """An edit with a vector of your own: x + strength · vector, at a hook point."""

    vector: NDArray[np.float32]
    hook_name: str
    strength: Amount = 1.0
    name: str = "vector"

    def __post_init__(self) -> None:
        object.__setattr__(self, "vector", vector_of(self.vector))
        _amount(self.strength, f"vector[{self.name!r}].strength", "norm")


@dataclass(frozen=True, init=False)
class CavEdit:
    """An edit with a CAV: `add` (strength, or "0.1norm"), `ablate=True`, or `clamp=(lo, hi)`."""

    cav: str
    operation: Literal["add", "ablate", "clamp"]
    strength: Amount
    bounds: tuple[float | None, float | None]

    def __init__(
        self,
        cav: str,
        *,
        add: Amount | None = None,
        ablate: bool = False,
        clamp: tuple[float | None, float | None] | None = None,
    ) -> None:
        if not cav:
            raise ValueError(f"names no CAV; {_CAV_FORMS}")
        if (add is not None) + ablate + (clamp is not None) != 1:
            raise ValueError(f"{cav!r}: give exactly one of add, ablate, clamp")
        operation = "add" if add is not None else "ablate" if ablate else "clamp"
        bounds = (None, None) if clamp is None else _bounds(*clamp, field=f"cav[{cav!r}].clamp")
        for name, value in (
            ("cav", cav),
            ("operation", operation),
            ("strength", 0.0 if add is None else add),
            ("bounds", bounds),
        ):
            object.__setattr__(self, name, value)
        _amount(self.strength, self.field, "norm")

    @classmethod
    def parse(cls, text: str) -> CavEdit:
        """Reads an edit as the command line writes it."""
        name, op, value = _split(text, ("add", "clamp", "ablate"), _CAV_FORMS)
        if op == "ablate":
            return cls(name, ablate=True)
        if op != "clamp":
            return cls(name, add=value)
        lower, dots, upper = value.partition("..")
        if not dots:
            raise ValueError(f"{value!r} is not a range; write LO..HI")
        return cls(name, clamp=tuple(bound or None for bound in (lower, upper)))  # type: ignore[arg-type]

    @property
    def field(self) -> str:
        """How errors name its strength."""
        return f"cav[{self.cav!r}].{self.operation}"


def _bounds(
    lower: Amount | None, upper: Amount | None, *, field: str
) -> tuple[float | None, float | None]:
    lower, upper = (None if bound is None else number(bound, field) for bound in (lower, upper))
    if lower is None and upper is None:
        raise ValueError("clamp has no bound; give (lo, hi), (lo, None) or (None, hi)")
    if lower is not None and upper is not None and lower > upper:
        raise ValueError(f"clamp: the lower bound {lower} is above the upper {upper}")
    return lower, upper


def _split(text: str, operations: Sequence[str], forms: str) -> tuple[str, str | None, str]:
    """The name, the operation if one is spelled out, and the value after the last `=`."""
    if text.endswith(":ablate") and not text.endswith("::ablate"):
        return text.removesuffix(":ablate"), "ablate", ""
    name, equals, value = text.rpartition("=")
    if not equals:
        raise ValueError(f"{text!r} has no value; {forms}")
    rest, colon, operation = name.rpartition(":")
    if colon and operation in operations and not rest.endswith(":"):
        if operation == "ablate":
            raise ValueError(f'{text!r}: ":ablate" takes no value')
        return rest, operation, value
    return name, None, value


#: What `feature=` takes: {"baseball": 525}, "baseball=525", an edit, or several.
Features = (
    Mapping[str, Amount] | Mapping[int, Amount] | str | FeatureEdit | Sequence[str | FeatureEdit]
)
#: What `cav=` takes.
Cavs = Mapping[str, Amount] | str | CavEdit | VectorEdit | Sequence[str | CavEdit | VectorEdit]


def feature_edits(features: Features) -> list[FeatureEdit]:
    """The edits that `feature=` means."""
    if isinstance(features, Mapping):
        return [FeatureEdit(feature, set=amount) for feature, amount in features.items()]
    several = [features] if isinstance(features, (str, FeatureEdit)) else features
    return [FeatureEdit.parse(one) if isinstance(one, str) else one for one in several]


def cav_edits(cavs: Cavs) -> list[CavEdit | VectorEdit]:
    """The edits that `cav=` means."""
    if isinstance(cavs, Mapping):
        for cav, strength in cavs.items():
            # To CavEdit, None is no edit.
            _amount(strength, f"cav[{cav!r}].add", "norm")
        return [CavEdit(cav, add=strength) for cav, strength in cavs.items()]
    several = [cavs] if isinstance(cavs, (str, CavEdit, VectorEdit)) else cavs
    return [CavEdit.parse(one) if isinstance(one, str) else one for one in several]


@dataclass(frozen=True)
class Readout:
    """A scalar read at every token: a feature's activation, or the product with a CAV."""

    text: str
    feature: FeatureRef | None
    cav: str | None

    @classmethod
    def parse(cls, text: str) -> Readout:
        """Reads LABEL, #INDEX, SAE::LABEL or cav:NAME."""
        cav = text.removeprefix("cav:")
        if cav != text and not cav.startswith(":"):
            if not cav:
                raise ValueError(f"{text!r} names no CAV; write cav:NAME")
            return cls(text, None, cav)
        return cls(text, FeatureRef.parse(text), None)


@dataclass(frozen=True)
class Condition:
    """Fires at a token where a readout is above or below a threshold."""

    readout: Readout
    above: bool
    threshold: str

    def __post_init__(self) -> None:
        _amount(self.threshold, self.field, None if self.readout.feature is None else "max")

    @property
    def field(self) -> str:
        """How errors name its threshold."""
        return f"threshold of {self.readout.text!r}"

    @classmethod
    def parse(cls, text: str) -> Condition:
        """Reads READOUT>VALUE or READOUT<VALUE."""
        condition, mode = _condition(text)
        if mode is not None:
            raise ValueError(
                f"{text!r} goes on with ':{mode}'; write READOUT>VALUE or READOUT<VALUE"
            )
        return condition


@dataclass(frozen=True)
class Gate:
    """Opens edits where, or from where, a condition fires."""

    condition: Condition
    mode: v1.GateMode
    tokens: int

    @classmethod
    def parse(cls, text: str) -> Gate:
        """Reads a condition, then `:while` (default), `:once` or `:for=TOKENS`."""
        condition, mode = _condition(text)
        if mode in (None, "while"):
            return cls(condition, v1.GATE_MODE_WHILE, 0)
        if mode == "once":
            return cls(condition, v1.GATE_MODE_ONCE, 0)
        tokens = re.fullmatch(r"for=([1-9][0-9]{0,8})", mode or "")
        if tokens is None:
            raise ValueError(f"{text!r}: ':{mode}' is no mode; write :while, :once or :for=TOKENS")
        return cls(condition, v1.GATE_MODE_FOR_TOKENS, int(tokens[1]))


def _condition(text: str) -> tuple[Condition, str | None]:
    match = re.fullmatch(r"(.*)([<>])([^<>:]*)(?::(.*))?", text, flags=re.S)
    if match is None:
        raise ValueError(f"{text!r} compares nothing; write READOUT>VALUE or READOUT<VALUE")
    readout, sign, threshold, mode = match.groups()
    if threshold.startswith("="):
        raise ValueError(f"{text!r}: comparisons are strict; write > or <")
    return Condition(Readout.parse(readout.strip()), sign == ">", threshold.strip()), mode


def _amount(amount: Amount, field: str, unit: str | None = None) -> tuple[float, bool]:
    """The number, and whether it is a fraction: text that ends in the unit."""
    fraction, allowed = False, "a finite number"
    digits: Amount = amount
    if unit is not None:
        allowed += f', or a fraction like "0.5{unit}"'
        if isinstance(amount, str) and amount.endswith(unit):
            fraction, digits = True, amount.removesuffix(unit)
    try:
        return checks.number(float(digits) if isinstance(digits, str) else digits, field), fraction
    except ValueError:
        raise checks.refusal(amount, field, allowed) from None


def number(amount: Amount, field: str) -> float:
    """A finite number, or text that is one."""
    return _amount(amount, field)[0]


def activation(amount: Amount, feature: v1.SaeFeature, field: str) -> float:
    """An amount in units of the feature's activation."""
    parsed, fraction = _amount(amount, field, "max")
    if not fraction:
        return parsed
    if not feature.HasField("max_activation"):
        raise ValueError(
            f"{field}: is {amount!r}; the registry knows no largest activation of {feature.sae_id}"
            f"#{feature.feature_index} ({feature.label!r}); give a plain number"
        )
    return parsed * feature.max_activation


def strength(amount: Amount, field: str) -> tuple[float, v1.StrengthUnit]:
    """A vector's strength and what it is relative to."""
    parsed, fraction = _amount(amount, field, "norm")
    return parsed, v1.STRENGTH_UNIT_FRACTION_OF_NORM if fraction else v1.STRENGTH_UNIT_RAW


def vector_of(values: ArrayLike) -> NDArray[np.float32]:
    """One vector of finite numbers."""
    vector = np.asarray(values, dtype=np.float32)
    if vector.ndim != 1 or vector.size == 0:
        raise ValueError(f"a vector has one dimension; this array has the shape {vector.shape}")
    if not np.isfinite(vector).all():
        raise ValueError("the vector has components that are not finite")
    return vector
