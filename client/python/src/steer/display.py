"""HTML for notebooks: plain strings, no script, everything that a model wrote escaped."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from steer.generation import Generation, Variant
    from steer.sweeps import Sweep

_CELL = "padding:4px 10px;text-align:left;vertical-align:top"
_COLOURS = ("#1f77b4", "#ff7f0e", "#2ca02c", "#9467bd", "#8c564b", "#17becf")


def generation(shown: Generation) -> str:
    """One column per variant; tokens coloured by the first probe, if there is one."""
    parts = [_table([[escape(v.name) for v in shown], [_variant(shown, v) for v in shown]])]
    if shown.probe_names:
        parts.append(_small(f"colour: {escape(shown.probe_names[0])}, before the edits"))
    for variant in shown:
        parts += [_small(f"{escape(variant.name)}: {line}") for line in _report(variant)]
    parts += [_small(f"warning: {escape(warning)}") for warning in shown.warnings]
    parts.append(_small(f"{escape(shown.model_id)} · seed {shown.seed}"))
    return f'<div class="steer">{"".join(parts)}</div>'


def tokens(pieces: Sequence[str], values: Sequence[float], top: float, name: str) -> str:
    """Pieces of text, each the redder the larger its value; `top` is the deepest red."""
    spans = []
    for piece, value in zip(pieces, values, strict=True):
        text = escape(piece).replace("\n", "<br>")
        if math.isnan(value):
            spans.append(f"<span>{text}</span>")
            continue
        share = min(max(value / top, 0.0), 1.0) if top > 0 else 0.0
        spans.append(
            f'<span style="background:rgba(220,60,40,{0.65 * share:.2f})" '
            f'title="{escape(name)} {value:.4g}">{text}</span>'
        )
    return "".join(spans)


def sweep(shown: Sweep) -> str:
    """The dose-response curve, and what was written at every strength."""
    head = ["strength", *shown.probe_names, "perplexity", "repetition", "text"]
    rows = [[escape(cell) for cell in head]]
    for point in shown.points:
        figures = [*point.probe_means, point.perplexity, point.repetition]
        strength = "baseline" if point.strength is None else f"{point.strength:g}"
        rows.append([strength, *map(_figure, figures), escape(point.text[:200])])
    return f'<div class="steer">{dose_response(shown)}{_table(rows)}</div>'


def dose_response(shown: Sweep) -> str:
    """Two panels over strength, as inline SVG: the probes' means, and perplexity (log)."""
    points = [point for point in shown.points if point.strength is not None]
    strengths = [point.strength or 0.0 for point in points]
    probes = [
        (name, [point.probe_means[i] for point in points])
        for i, name in enumerate(shown.probe_names)
    ]
    perplexities = [
        math.log10(p.perplexity) if p.perplexity and p.perplexity > 0 else None for p in points
    ]
    title = f"{escape(shown.swept)}: strength"
    panels = _panel(0, "mean of probe", strengths, probes, title, log=False)
    if any(value is not None for value in perplexities):
        series = [("perplexity", perplexities)]
        panels += _panel(380, "perplexity", strengths, series, title, log=True)
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" width="740" height="240" '
        f'font-family="sans-serif" font-size="11">{panels}</svg>'
    )


_Series = list[tuple[str, list[float | None]]]


def _panel(
    left: int, label: str, xs: list[float], series: _Series, title: str, *, log: bool
) -> str:
    width, height, x0, y0 = 290, 170, left + 55, 25
    values = [v for _, ys in series for v in ys if v is not None and math.isfinite(v)]
    if not values or not xs:
        return ""
    low, top, left_end = min(0.0, *values), max(values), min(xs)
    span_x, span_y = (max(xs) - left_end) or 1.0, (top - low) or 1.0
    parts = [
        f'<rect x="{x0}" y="{y0}" width="{width}" height="{height}" fill="none" stroke="#999"/>',
        f'<text x="{x0}" y="{y0 - 8}">{label}</text>',
        f'<text x="{x0 + width / 2}" y="{y0 + height + 30}" text-anchor="middle">{title}</text>',
    ]
    for share in (0.0, 0.5, 1.0):
        y, value = y0 + height * (1 - share), low + span_y * share
        tick = 10**value if log else value
        parts.append(f'<text x="{x0 - 5}" y="{y + 4:.1f}" text-anchor="end">{tick:.3g}</text>')
        x, value = x0 + width * share, left_end + span_x * share
        parts.append(
            f'<text x="{x:.1f}" y="{y0 + height + 14}" text-anchor="middle">{value:.4g}</text>'
        )
    for i, (name, ys) in enumerate(series):
        colour = _COLOURS[i % len(_COLOURS)]
        path = " ".join(
            f"{x0 + width * (x - left_end) / span_x:.1f},{y0 + height * (top - y) / span_y:.1f}"
            for x, y in zip(xs, ys, strict=True)
            if y is not None and math.isfinite(y)
        )
        parts.append(
            f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2">'
            f"<title>{escape(name)}</title></polyline>"
        )
        if len(series) > 1:
            y = y0 + 14 * (i + 1)
            parts.append(f'<text x="{x0 + 6}" y="{y}" fill="{colour}">{escape(name)}</text>')
    return "".join(parts)


def listing(head: Sequence[str], rows: Sequence[Sequence[str]], remarks: Sequence[str]) -> str:
    """A table of texts, and what is to be known beside them."""
    cells = [[escape(cell) for cell in row] for row in (head, *rows)]
    below = "".join(_small(escape(remark)) for remark in remarks)
    return f'<div class="steer">{_table(cells)}{below}</div>'


def _variant(shown: Generation, variant: Variant) -> str:
    if not shown.probe_names:
        return escape(variant.text).replace("\n", "<br>")
    read = [shown.probe(0, one.name) for one in shown]
    # One scale for all variants, so that they can be compared.
    top = max((float(v) for values in read for v in values if not math.isnan(v)), default=0.0)
    values = [float(value) for value in shown.probe(0, variant.name)]
    return tokens(variant.pieces, values, top, shown.probe_names[0])


def _report(variant: Variant) -> list[str]:
    return [
        f"{escape(r.payload_name)!r} {escape(r.edit)} at {escape(r.hook_name)} · changed "
        f"{r.positions_changed} of {r.positions_touched} positions · "
        f"mean |Δ|/|x| {r.mean_relative_delta:.3f}"
        for r in variant.interventions
    ]


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _table(rows: list[list[str]]) -> str:
    def row(cells: list[str], tag: str) -> str:
        return "<tr>" + "".join(f'<{tag} style="{_CELL}">{c}</{tag}>' for c in cells) + "</tr>"

    return f"<table>{row(rows[0], 'th')}{''.join(row(cells, 'td') for cells in rows[1:])}</table>"


def _small(html: str) -> str:
    return f'<div style="font-size:85%;color:#777">{html}</div>'
