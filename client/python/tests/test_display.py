"""What notebooks show."""

from __future__ import annotations

import xml.etree.ElementTree as ET

from steer import v1
from steer.generation import Reader
from steer.sweeps import Point, Sweep, repetition

HOSTILE = "<script>alert(1)</script>"


def read(*events: v1.GenerateResponse) -> Reader:
    reader = Reader()
    for event in events:
        reader.read(event)
    return reader


def generation(text: str, probe: str) -> Reader:
    reading = v1.Reading(position=1, before=[3.0], after=[5.0])
    return read(
        v1.GenerateResponse(
            started=v1.GenerationStarted(
                variant_names=[text], prompt_token_ids=[2], probe_names=[probe], warnings=[text]
            )
        ),
        v1.GenerateResponse(token=v1.GeneratedToken(text=text)),
        v1.GenerateResponse(token=v1.GeneratedToken(text="b\n", readings=[reading])),
        v1.GenerateResponse(finished=v1.VariantFinished(finish_reason=1)),
    )


def test_tokens_are_coloured_by_what_was_read_at_them() -> None:
    shown = generation("goalie", "hockey").end()
    html = shown._repr_html_()
    assert 'background:rgba(220,60,40,0.65)" title="hockey 3">goalie</span>' in html
    assert "<span>b<br></span>" in html, "the last token was never read"
    assert shown.probe(0)[0] == 3.0
    assert shown.probe(0, after=True)[0] == 5.0


def test_what_a_model_writes_is_no_markup() -> None:
    shown = generation(HOSTILE, HOSTILE).end()
    assert "<script" not in shown._repr_html_()
    point = Point(1.0, shown[0], [None], repetition=None)
    sweep = Sweep(HOSTILE, [HOSTILE], [point], seed=1, model_id=HOSTILE)
    assert "<script" not in sweep._repr_html_()


def test_the_curve_is_well_formed() -> None:
    shown = generation("a", "b").end()
    points = [Point(float(s), shown[0], [s / 2, None], 0.0, float(s + 1)) for s in range(3)]
    sweep = Sweep("a & b", ["a & b", "c"], points, seed=1, model_id="m")
    root = ET.fromstring(sweep.svg())
    lines = root.findall(".//{http://www.w3.org/2000/svg}polyline")
    assert [len(line.get("points", "").split()) for line in lines] == [3, 0, 3]


def test_repetition_is_the_share_of_3_grams_seen_before() -> None:
    assert repetition([1, 2]) is None
    assert repetition([1, 1, 1, 1, 1, 1]) == 0.75
