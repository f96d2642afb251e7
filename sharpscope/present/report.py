"""A run as one HTML file: no script, no address outside itself; every number from the tables."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from functools import cache
from importlib import resources
from typing import Any

import pandas as pd
from jinja2 import Environment, StrictUndefined, Template

from sharpscope.errors import shown
from sharpscope.present import layerwise, making, outcome
from sharpscope.present.view import Figure, Section, Source
from sharpscope.vocabulary import BASES, CRITERIA, FLAGS, MEASURES

__all__ = ["CITATIONS", "GLOSSARY", "build_report"]

GLOSSARY: dict[str, str] = {
    "α, path": "θ(α) = (1 − α) θ₀ + α θ₁: 0 is the zero-shot model, 1 the fine-tuned one.",
    "ID, OOD": "In distribution: what the model was fine-tuned for. Out of distribution: other styles or shifts of it.",
    "probe": "The fixed set of ID training examples on which loss and curvature are measured.",
    "layer, whole model": "Tensors grouped at the chosen granularity; the whole model: all moving parameters.",
    **{m.name: f"{m.text}." for m in MEASURES.values()},
    "stderr, residual": "Error of the estimate on these images: standard error over random directions; for an "
    "eigenvalue ‖Hv − λv‖, a bound on its error.",
    "stderr_images, n": "Error over draws of images: the standard error of the quantity in the population that the n "
    "probe images were drawn from, the error of the estimate in it. Verdicts and probabilities use this one.",
    "straggler": "A layer whose own movement or sharpness stands out by the rule; the set may be empty.",
    **{c.spelling: f"{c.text[:-1]} ({c.source})." for c in CRITERIA.values()},
    "base": "Where all other layers stand while one layer moves alone: "
    + "; ".join(f"{name}, {base.text}" for name, base in BASES.items())
    + ".",
    **{name: f"A way to fail: {flag.text}." for name, flag in FLAGS.items()},
    "density, delta, weight": "Fraction of entries kept; dropped ones return to θ₀ (delta) or become 0 (weight).",
    "gain": "OOD accuracy of a repaired model minus that of the plain path at the same ID accuracy.",
    "regret": "OOD accuracy lost against the α that OOD labels would have picked.",
    "p, q": "Permutation p-value (never 0); q: Benjamini and Hochberg's false discovery rate over layers.",
    "not converged, failed, undefined, frozen": "Budget spent before the tolerance; not finite; no meaning "
    "here; the layer does not move.",
}
CITATIONS: tuple[str, ...] = (
    "Abdollahpoorrostam 2024, arXiv 2410.16476: the claims judged here; no code of theirs was released.",
    "Wortsman et al. 2022, Robust fine-tuning of zero-shot models (WiSE-FT), arXiv 2109.01903.",
    "Nam et al. 2024, Lipsum-FT, arXiv 2404.00860.",
    "Li et al. 2024, CLIPFit, arXiv 2409.16718.",
    "Wang et al. 2024, ContCoOp, arXiv 2412.20895.",
)


_SECTIONS = (
    outcome.answer,
    outcome.advice,
    outcome.pairs,
    outcome.accuracy,
    outcome.failure,
    layerwise.sharpness,
    layerwise.stragglers,
    layerwise.repair,
    layerwise.correlations,
    making.problems,
    making.making,
)
"""In the order in which a reader asks."""


@cache
def _template() -> Template:
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    text = resources.files("sharpscope.present").joinpath("report.html.j2").read_text(encoding="utf-8")
    return environment.from_string(text)


def _short_answer(source: Source) -> tuple[str, str]:
    """The verdict on the study's question; empty where no verdict answers it."""
    table = source.table("verdicts")
    for row in table[[outcome.is_question(c) for c in table["claim"]]].to_dict("records"):
        return shown(row["verdict"]), shown(row["evidence"], 2000)
    return "", ""


def build_report(
    tables: Mapping[str, pd.DataFrame],
    figures: Mapping[str, bytes],
    manifest: Mapping[str, Any],
    timing: Mapping[str, Any] | None = None,
) -> str:
    """The report as one self-contained HTML text; the same input gives the same bytes.

    Args:
        tables: by the names of the schema, any of them missing or empty (the section then says so).
        figures: PNGs by the names of ``plots.all_figures``; others are put at the end.
        manifest: plain data; read are ``config`` (or ``identity.config``): title, question, caveat, pairs,
            measures, straggler_criterion; ``pairs``:
            facts of each pair by name, nested as they come; ``timing``; all else is listed under "How it was made".
        timing: kind of unit -> {"units": count, "seconds": total} (or seconds); default ``manifest["timing"]``.
    """
    known = timing if timing is not None else manifest.get("timing")
    source = Source(tables, figures, manifest, known if isinstance(known, Mapping) else {})
    sections = [make(source) for make in _SECTIONS]
    used = {f.png for s in sections for f in s.figures}
    left = [Figure(png, shown(name.replace("_", " "))) for name, png in figures.items() if png not in used]
    if left:
        sections.append(Section("Further figures", "further", figures=tuple(left)))
    title = source.config.get("title") or "sharpscope report"
    return _template().render(
        title=shown(title, 200),
        question=shown(source.config.get("question") or "", 1000),
        caveat=shown(source.config.get("caveat") or "", 2000),
        answer=_short_answer(source),
        sections=sections,
        glossary=GLOSSARY,
        citations=CITATIONS,
        data=lambda png: base64.b64encode(png).decode("ascii"),
        kind=lambda block: type(block).__name__,
    )
