"""The grammar, which is the command line's."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from steer import v1
from steer.edits import CavEdit, Condition, FeatureEdit, FeatureRef, Gate, Readout, cav_edits


@pytest.mark.parametrize(
    ("text", "sae", "key", "operation", "amount"),
    [
        ("baseball=525", None, "baseball", "set", "525"),
        ("baseball:ablate", None, "baseball", "set", 0.0),
        ("a=b=2", None, "a=b", "set", "2"),
        ("#12:min=0.5max", None, 12, "min", "0.5max"),
        ("scope/l21::#12:scale=2", "scope/l21", 12, "scale", "2"),
        ("::std::vector=3", None, "std::vector", "set", "3"),
        ("label:max:set=3", None, "label:max", "set", "3"),
        ("two words: a label=1", None, "two words: a label", "set", "1"),
    ],
)
def test_feature_edits(text: str, sae: str, key: str, operation: str, amount: str) -> None:
    edit = FeatureEdit.parse(text)
    assert edit.feature == FeatureRef(sae, key)
    assert (edit.operation, edit.amount) == (operation, amount)


def test_cav_edits() -> None:
    assert CavEdit.parse("rec.autos=600").strength == "600"
    assert CavEdit.parse("rec.autos:clamp=-5..").bounds == (-5.0, None)
    assert CavEdit.parse("a@12345678:ablate").cav == "a@12345678"
    assert [edit.strength for edit in cav_edits({"a": 1, "b": "0.1norm"})] == [1, "0.1norm"]


def test_readouts_and_gates() -> None:
    assert Readout.parse("cav:birds").cav == "birds"
    assert Readout.parse("cav::birds").feature == FeatureRef("cav", "birds")
    gate = Gate.parse("space>3:for=5")
    assert (gate.mode, gate.tokens, gate.condition.threshold) == (v1.GATE_MODE_FOR_TOKENS, 5, "3")
    assert Gate.parse("a > b>0.5max:once").condition.readout.text == "a > b"
    assert not Condition.parse("cav:birds<-1").above


@pytest.mark.parametrize(
    ("parse", "text", "says"),
    [
        (FeatureEdit.parse, "baseball", "has no value"),
        (FeatureEdit.parse, "a:ablate=3", "takes no value"),
        (FeatureEdit.parse, "a=b", r"feature\['a'\].set: is 'b'"),
        (FeatureEdit.parse, "=3", "names no feature"),
        (FeatureEdit.parse, "#99999999999=3", "is not a feature index"),
        (CavEdit.parse, "a:clamp=3", "is not a range"),
        (CavEdit.parse, "a:clamp=3..1", "above the upper"),
        (CavEdit.parse, "a:clamp=..", "no bound"),
        (CavEdit.parse, "=3", "names no CAV"),
        (Condition.parse, "space", "compares nothing"),
        (Condition.parse, "space>=3", "strict"),
        (Condition.parse, "space>", "threshold of 'space': is ''"),
        (Condition.parse, "space>3:once", "goes on"),
        (Gate.parse, "space>3:for=0", "is no mode"),
        (Readout.parse, "cav:", "names no CAV"),
    ],
)
def test_what_is_no_edit_says_why(parse: Callable[[str], object], text: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        parse(text)
