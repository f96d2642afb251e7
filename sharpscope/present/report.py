"""The report of a run as one HTML file that fetches nothing; all numbers come from the tables.

Its only script sorts tables and unfolds them for print; the page says everything without it.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from importlib import resources
from typing import Any, Final

import pandas as pd
from jinja2 import Environment, StrictUndefined, Template

from sharpscope.errors import shown
from sharpscope.present import advicesection, layerwise, outcome, provenance
from sharpscope.present.agreementplots import agreement_section
from sharpscope.present.alphas import alpha_path, alpha_sentence, said, showing_alpha_on, with_symbol
from sharpscope.present.view import Figure, Section, Source
from sharpscope.vocabulary import BASES, CRITERIA, FLAGS, MEASURES, STATUSES, AlphaSide

__all__ = ["CITATIONS", "GLOSSARY", "build_report"]

_REGRET: Final = "regret"


def _status(name: str) -> str:
    return name.replace("_", " ")


GLOSSARY: dict[str, str] = {
    "ID, OOD": "In distribution: the data of fine-tuning. Out of distribution: other styles or shifts of these data.",
    "probe": "The fixed set of ID training examples on which loss and curvature are measured.",
    "layer, whole model": "A layer is a group of tensors at the chosen granularity. The whole model is all "
    "parameters on which the logits depend, whether they move or not.",
    **{m.name: f"{m.text}." for m in MEASURES.values()},
    "stderr, residual": "The error of the estimate on these images: stderr is the standard error over random probe "
    "vectors; for an eigenvalue the residual ‖Hv − λv‖ bounds its error.",
    "stderr_images, n": "The error over draws of images: the standard error of the quantity in the population from "
    "which the n probe images were drawn. It includes the error of the estimate. Verdicts and probabilities use it.",
    "straggler": "A layer whose own movement, or rise of sharpness along the path, stands out from the other layers by "
    "the straggler rule. A pair may have none. A layer whose share of the sharpness is large at θ₀ already "
    "is no straggler for that reason alone.",
    **{c.spelling: f"{c.text[:-1]} ({c.source})." for c in CRITERIA.values()},
    "base": "The position of all other layers while one layer moves alone: "
    + "; ".join(f"{name}, {base.text}" for name, base in BASES.items())
    + ".",
    **{name: f"Failure flag: {flag.text}." for name, flag in FLAGS.items()},
    "density, delta, weight": "Density is the fraction of entries kept. Dropped entries return to their value in θ₀ "
    "(delta) or become 0 (weight).",
    "gain": "OOD accuracy of a repaired model minus that of the plain path at the same ID accuracy.",
    _REGRET: "OOD accuracy lost against the α that OOD labels would have picked.",
    "p, q": "p is a permutation p-value (never 0). q is p after a correction for the number of tests. For a comparison "
    "that was named beforehand it is Holm's over the groups of OOD sets, for the layers of one map Benjamini and "
    "Hochberg's (false discovery rate); for a single test q is p.",
    ", ".join(_status(name) for name in STATUSES if name != "ok"): " ".join(
        f"{_status(name).capitalize()}: {status.text}." for name, status in STATUSES.items() if name != "ok"
    ),
}
CITATIONS: tuple[str, ...] = (
    "Abdollahpoorrostam 2024, arXiv 2410.16476: the source of the claims judged here; its code was not released.",
    "Wortsman et al. 2022, Robust fine-tuning of zero-shot models (WiSE-FT), arXiv 2109.01903.",
    "Nam et al. 2024, Lipsum-FT, arXiv 2404.00860.",
    "Li et al. 2024, CLIPFit, arXiv 2409.16718.",
    "Wang et al. 2024, ContCoOp, arXiv 2412.20895.",
)


_SECTIONS: tuple[Callable[[Source], Section | None], ...] = (
    outcome.answer,
    advicesection.advice,
    outcome.accuracy,
    outcome.failure,
    agreement_section,
    layerwise.sharpness,
    layerwise.stragglers,
    layerwise.repair,
    layerwise.correlations,
    provenance.problems,
    outcome.pairs,
    provenance.making,
)
"""The sections of the report, in the order in which a reader asks the questions."""


@cache
def _template() -> Template:
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(_file("report.html.j2"))


@cache
def _file(name: str) -> str:
    return resources.files("sharpscope.present").joinpath(name).read_text(encoding="utf-8")


def _script() -> tuple[str, str]:
    """The script, and its hash, which alone the page lets run."""
    text = _file("report.js")
    return text, base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii")


def _short_answers(source: Source) -> list[tuple[str, str]]:
    """(verdict, on which OOD groups) on the study's question; the evidence stands under "Answer"."""
    table = source.table("verdicts")
    rows = table[[outcome.is_question(c) for c in table["claim"]]].to_dict("records")
    groups: dict[str, list[str]] = {}
    for row in rows:
        groups.setdefault(shown(row["verdict"]), []).append(shown(row["group"], 60))
    return [
        (f"{verdict[:1].upper()}{verdict[1:]}", f"on the OOD sets of {' and of '.join(found)}.")
        for verdict, found in groups.items()
    ]


def build_report(
    tables: Mapping[str, pd.DataFrame],
    figures: Mapping[str, bytes],
    manifest: Mapping[str, Any],
    timing: Mapping[str, Any] | None = None,
    notices: Sequence[str] = (),
    side: AlphaSide = "finetuned",
) -> str:
    """The report as one self-contained HTML text; the same input gives the same bytes.

    Args:
        tables: tables by the names of the schema. Any of them may be missing or empty; its section then says so.
        figures: PNGs by the names of ``plots.all_figures``; figures with other names are put at the end.
        manifest: plain data. The report uses title, question, caveat, pairs, measures and straggler_criterion of its
            ``config`` (or ``identity.config``), its ``pairs`` (name -> facts, which may be nested) and its ``timing``.
            All other entries are listed under "How it was made".
        timing: kind of unit -> {"units": count, "seconds": total} (or seconds); default ``manifest["timing"]``.
        notices: why no verdict is given; printed above everything else.
        side: the model whose weight is shown as alpha; the figures have to be drawn inside
            ``alphas.showing_alpha_on(side)``.
    """
    with showing_alpha_on(side):
        return _built(tables, figures, manifest, timing, notices)


def _built(
    tables: Mapping[str, pd.DataFrame],
    figures: Mapping[str, bytes],
    manifest: Mapping[str, Any],
    timing: Mapping[str, Any] | None,
    notices: Sequence[str],
) -> str:
    known = timing if timing is not None else manifest.get("timing")
    source = Source(tables, figures, manifest, known if isinstance(known, Mapping) else {})
    sections = [section for make in _SECTIONS if (section := make(source)) is not None]
    used = {f.png for s in sections for f in s.figures}
    left = [Figure(png, shown(name.replace("_", " "))) for name, png in figures.items() if png not in used]
    if left:
        sections.append(Section("Further figures", "further", figures=tuple(left)))
    title = source.config.get("title") or "sharpscope report"
    script, script_hash = _script()
    return _template().render(
        css=_file("report.css"),
        script=script,
        script_hash=script_hash,
        title=shown(title, 200),
        notices=[shown(said(text), 2000) for text in notices],
        lead=alpha_sentence(),
        question=shown(source.config.get("question") or "", 1000),
        caveat=shown(source.config.get("caveat") or "", 2000),
        answers=_short_answers(source),
        measured=outcome.measured(source),
        glance=advicesection.glance(source),
        sections=sections,
        glossary={with_symbol("α, path"): alpha_path(), **GLOSSARY, _REGRET: with_symbol(GLOSSARY[_REGRET])},
        citations=CITATIONS,
        data=lambda png: base64.b64encode(png).decode("ascii"),
        kind=lambda block: type(block).__name__,
    )
