"""One edit at many strengths, decoded as one batch, and what was measured about it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from steer import checks, compose, display, rpc, v1
from steer.edits import CavEdit, FeatureEdit
from steer.generation import Generation, Reader, Variant
from steer.options import GenerateOptions, Prompt, SweepOptions
from steer.rpc import Call, Plan

if TYPE_CHECKING:
    import pandas as pd

#: Length of the runs of tokens that repetition counts.
NGRAM = 3
#: More strengths than this are a mistake in the step.
STRENGTHS_MAX = 1000


@dataclass
class Point:
    """One strength. `strength` is None for the unsteered baseline."""

    strength: float | None
    variant: Variant
    #: Mean of every probe over the generated tokens that were read; None where none was.
    probe_means: list[float | None]
    #: Share of the 3-grams of generated tokens that occurred before: 1 − distinct / all.
    repetition: float | None
    #: Of the generated tokens under the unsteered model.
    perplexity: float | None = None

    @property
    def text(self) -> str:
        """What was written."""
        return self.variant.text


@dataclass(repr=False)
class Sweep:
    """A dose-response curve. In a notebook it draws itself."""

    swept: str
    probe_names: list[str]
    points: list[Point]
    seed: int
    model_id: str
    warnings: list[str] = field(default_factory=list)

    def __repr__(self) -> str:
        return f"<Sweep of {self.swept}, {len(self.points)} points, seed {self.seed}>"

    def to_pandas(self) -> pd.DataFrame:
        """A row per strength; the baseline's strength is NaN. Needs the extra `pandas`."""
        import pandas as pd

        return pd.DataFrame(
            {
                "strength": [np.nan if p.strength is None else p.strength for p in self.points],
                **{
                    name: [p.probe_means[i] for p in self.points]
                    for i, name in enumerate(self.probe_names)
                },
                "perplexity": [p.perplexity for p in self.points],
                "repetition": [p.repetition for p in self.points],
                "tokens": [len(p.variant.token_ids) for p in self.points],
                "finish_reason": [p.variant.finish_reason for p in self.points],
                "text": [p.text for p in self.points],
            }
        )

    def svg(self) -> str:
        """The dose-response curve, as one SVG."""
        return display.dose_response(self)

    def _repr_html_(self) -> str:
        return display.sweep(self)


def sweep(
    prompt: Prompt,
    strengths: Iterable[float],
    options: SweepOptions,
    *,
    feature: str | int | None = None,
    cav: str | None = None,
) -> Plan[Sweep]:
    """The plan of a sweep; every request is as large as the worker's limits allow."""
    if (feature is None) == (cav is None):
        raise ValueError("sweep: give one of feature, cav")
    several = enumerate(checks.several(strengths, "strengths"))
    values = [checks.number(value, f"strengths[{i}]") for i, value in several]
    if not 1 <= len(values) <= STRENGTHS_MAX:
        raise ValueError(f"strengths: {len(values)} of them; 1 to {STRENGTHS_MAX} are allowed")
    for i, value in enumerate(values):
        if value in values[:i]:
            raise ValueError(f"strengths[{i}]: is {value:g}, as strengths[{values.index(value)}]")
    swept = f"cav:{cav}" if feature is None else str(feature)
    asked: GenerateOptions = {**options, "compare": True}  # type: ignore[typeddict-item]
    if not asked.get("probe"):
        asked["probe"] = f"#{feature}" if isinstance(feature, int) else swept
    asked["variants"] = {
        _name(value): {"cav": [CavEdit(cav or "", add=value)]}
        if feature is None
        else {"feature": [FeatureEdit(feature, set=value)]}
        for value in values
    }
    template = yield from compose.generate_request(prompt, asked)
    model = yield from rpc.ask(rpc.GET_MODEL, v1.GetModelRequest())
    generations = yield from _decode(template, model.limits)
    points = [
        _point(strength, generation, variant)
        for strength, (generation, variant) in zip(
            [None, *values], ((g, v) for g in generations for v in g), strict=True
        )
    ]
    prompt_ids = generations[0].prompt_token_ids
    yield from _score(prompt_ids, points, template)
    warnings = list(dict.fromkeys(w for g in generations for w in g.warnings))
    first = generations[0]
    return Sweep(swept, first.probe_names, points, first.seed, first.model_id, warnings)


def _name(strength: float) -> str:
    """A variant's name: short, and no other strength's."""
    short = f"{strength:g}"
    return short if float(short) == strength else repr(strength)


def _decode(template: v1.GenerateRequest, limits: v1.Limits) -> Plan[list[Generation]]:
    """All variants, in as few requests as the limits allow, with one seed."""
    variants = list(template.variants)
    at_once = max(min(limits.max_variants, limits.max_sequences), 1)
    generations: list[Generation] = []
    for start in range(0, len(variants), at_once):
        request = v1.GenerateRequest()
        request.CopyFrom(template)
        del request.variants[:]
        request.variants.extend(variants[start : start + at_once])
        if generations:
            request.sampling.seed = generations[0].seed
        reader = Reader()
        yield Call(rpc.GENERATE, request, on_message=reader.read)
        generations.append(reader.end())
    return generations


def _point(strength: float | None, generation: Generation, variant: Variant) -> Point:
    means: list[float | None] = []
    for i in range(len(generation.probe_names)):
        values = generation.probe(i, variant.name)
        read = values[~np.isnan(values)]
        means.append(float(read.mean()) if read.size else None)
    return Point(strength, variant, means, repetition(variant.token_ids))


def repetition(token_ids: Sequence[int]) -> float | None:
    """1 − distinct / all 3-grams; None for texts that have none."""
    ngrams = [tuple(token_ids[i : i + NGRAM]) for i in range(len(token_ids) - NGRAM + 1)]
    return 1 - len(set(ngrams)) / len(ngrams) if ngrams else None


def _score(prompt_ids: list[int], points: list[Point], template: v1.GenerateRequest) -> Plan[None]:
    """Perplexities; equal texts are scored once."""
    scored: dict[tuple[int, ...], float] = {}
    for point in points:
        text = tuple(point.variant.token_ids)
        if not text:
            continue
        if text not in scored:
            request = v1.ScoreTextRequest(
                prompt=v1.Prompt(token_ids=v1.TokenIds(ids=prompt_ids)),
                token_ids=v1.TokenIds(ids=text),
            )
            if template.HasField("priority"):
                request.priority = template.priority
            answer = yield from rpc.ask(rpc.SCORE_TEXT, request)
            scored[text] = answer.scores[0].perplexity
        point.perplexity = scored[text]
