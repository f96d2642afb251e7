"""alpha shown as the weight of the zero-shot model: the same numbers at mirrored alphas, in tables, sentences, axes."""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.figure import Figure

from sharpscope.present import advicesection, plots, report
from sharpscope.present.alphas import alpha_is, in_order_of_alpha, said, showing_alpha_on
from sharpscope.present.layermap import layer_map
from sharpscope.present.view import Grid, LayerMap, Line, Source
from sharpscope.vocabulary import AlphaSide, weight_on

Tables = dict[str, pd.DataFrame]


def mirrored(text: str) -> str:
    """What the fine-tuned side says, in the words of the other."""
    text = re.sub(r"(α|alpha)( = | )(\d[.\d]*\d|\d)", lambda m: f"\0{m[2]}{float(f'{1 - float(m[3]):.9f}'):g}", text)
    return text.replace("α", "α′").replace("\0", "α′")


def blocks(tables: Tables, manifest: dict[str, Any], side: AlphaSide) -> tuple[list[Grid], list[str]]:
    """(the grids of every section, all other texts)."""
    with showing_alpha_on(side):
        source = Source(tables, {}, manifest, {})
        sections = [s for make in report._SECTIONS if (s := make(source)) is not None and s.anchor != "making"]
        first = advicesection.glance(source)
    assert first is not None
    every = [first, *(block for s in sections for block in (*s.blocks, *s.folded) if not isinstance(block, LayerMap))]
    texts = [b.text + "|" + b.note if isinstance(b, Line) else str(b) for b in every if not isinstance(b, Grid)]
    grids = [b for b in every if isinstance(b, Grid)]
    return grids, texts + [g.caption for g in grids]


def test_every_table_and_sentence_of_the_report_is_mirrored(tables: Tables, manifest: dict[str, Any]) -> None:
    (ours, texts), (theirs, other) = (blocks(tables, manifest, side) for side in ("finetuned", "zeroshot"))
    assert [mirrored(t) for t in texts] == other
    seen = 0
    for one, two in zip(ours, theirs, strict=True):
        heads = [mirrored(h) for h in one.head]
        assert sorted(heads) == sorted(two.head) and len(one.rows) == len(two.rows)
        columns = list(range(len(heads))) if heads == list(two.head) else [two.head.index(h) for h in heads]
        for row, mirror in zip(one.rows, two.rows, strict=True):
            for head, mine, j in zip(one.head, row, columns, strict=True):
                if head.endswith("α") and mine.text[0].isdigit():
                    number, _, named = mine.text.partition(" ")
                    assert float(mirror[j].text.split()[0]) == pytest.approx(1 - float(number))
                    assert mirror[j].text.partition(" ")[2] == named
                    seen += float(number) != 0.5
                else:
                    assert (mirror[j].text, mirror[j].title) == (mirrored(mine.text), mirrored(mine.title))
    assert seen > 10


def test_the_layer_map_has_the_same_values_at_mirrored_points(tables: Tables, manifest: dict[str, Any]) -> None:
    found = []
    for side in ("finetuned", "zeroshot"):
        with showing_alpha_on(side):
            drawn = layer_map(Source(tables, {}, manifest, {}))
        assert drawn is not None
        found.append(json.loads(drawn.data))
    ours, theirs = found
    assert theirs["symbol"] == "α′" and theirs["layers"] == ours["layers"]
    assert theirs["points"] == [mirrored(p) for p in reversed(ours["points"])] and len(set(ours["points"])) > 3
    assert [float(h) for h in theirs["heads"]] == pytest.approx([1 - float(h) for h in reversed(ours["heads"])])
    for measure, pairs in ours["values"].items():
        for pair, rows in pairs.items():
            assert theirs["values"][measure][pair] == [row[::-1] for row in rows]


def test_the_page_says_whose_weight_alpha_is(tables: Tables, manifest: dict[str, Any]) -> None:
    notice = "The path has no point at alpha 1 (alphas: 0 0.2). Remedy: --alphas 0 0.2 1."
    page = report.build_report(tables, {}, manifest, None, [notice], "zeroshot")
    assert "α′ = 1 − α is the weight of the zero-shot model (1: zero-shot, 0: fine-tuned)." in page
    assert "θ(α′) = α′ θ₀ + (1 − α′) θ₁: 1 is the zero-shot model, 0 the fine-tuned one." in page
    assert "The table files, the configuration and all flags keep α" in page
    assert "no point at α′ 0 (alphas: 0.8 1). Remedy: --alphas 0 0.2 1." in page
    plain = report.build_report(tables, {}, manifest)
    assert "α is the weight of the fine-tuned model (0: zero-shot, 1: fine-tuned)." in plain and "α′" not in plain


@pytest.mark.parametrize(
    ("sentence", "shown"),
    [
        ("the flag needs alpha = 0, alpha = 1 and an alpha between them",
         "the flag needs α′ = 1, α′ = 0 and an alpha between them"),
        ("alpha 0.65 is not on the grid: accuracy interpolated", "α′ 0.35 is not on the grid: accuracy interpolated"),
        ("no point at alpha 0 and 1 (alphas: 0.2 0.7).", "no point at α′ 1 and 0 (alphas: 0.3 0.8)."),
        ("80% of 4 alphas in [0.1, 1]", "80% of 4 alphas in [0, 0.9]"),
        ("gain +0.0312 over alpha = 0, the end", "gain +0.0312 over α′ = 1, the end"),
        ("Remedy: --alphas 0 0.5 1, or --alpha 0.3.", "Remedy: --alphas 0 0.5 1, or --alpha 0.3."),
        ("over 7 alphas; alpha-2 0.3", "over 7 alphas; alpha-2 0.3"),
    ],
)  # fmt: skip
def test_sentences_of_findings(sentence: str, shown: str) -> None:
    assert said(sentence) == sentence
    assert said("by -0.6 [-4.4, +3.2] (-1) at 1e-5 of vit-b-32") == "by −0.6 [−4.4, +3.2] (−1) at 1e-5 of vit-b-32"
    with showing_alpha_on("zeroshot"):
        assert said(sentence) == shown


def test_numbers_and_the_order_of_them() -> None:
    assert [weight_on(a, "zeroshot") for a in (0.0, 0.1, 0.7, 1.0, 1.5)] == [1.0, 0.9, 0.3, 0.0, -0.5]
    assert in_order_of_alpha([0.7, 0.2, float("nan"), 0.2]) == [0.2, 0.7]
    with showing_alpha_on("zeroshot"):
        assert alpha_is(1.0000000000000002) == "α′ = 0"  # a tick of matplotlib's; not -0
        assert alpha_is(0.7) == "α′ = 0.3" and in_order_of_alpha([0.2, 0.7]) == [0.7, 0.2]
    assert alpha_is(0.7) == "α = 0.7"


def _along(figure: Figure, symbol: str) -> list[Axes]:
    return [ax for ax in figure.axes if re.match(rf"{symbol}( \(|$)", ax.get_xlabel())]


def test_figures_show_the_same_points_at_mirrored_alphas(few: Tables) -> None:
    sharp = few["sharpness"]
    some = {name: few[name] for name in ("accuracy", "path", "failure")}
    some["sharpness"] = sharp[sharp["measure"] == "hessian_trace"]
    ours = plots.all_figures(some)
    with showing_alpha_on("zeroshot"):
        theirs = plots.all_figures(some)
    checked = set()
    for name, figure in ours.items():
        for one, two in zip(_along(figure, "α"), _along(theirs[name], "α′"), strict=True):
            checked.add(name.partition("_")[0])
            if name.startswith("heatmap"):
                meshes = [next(c for c in ax.collections if isinstance(c, QuadMesh)).get_array() for ax in (one, two)]
                assert np.ma.allequal(meshes[0], meshes[1][:, ::-1])
                labels = [[float(t.get_text()) for t in ax.get_xticklabels()] for ax in (one, two)]
                assert labels[1] == pytest.approx([1 - a for a in labels[0]][::-1])
                continue
            assert two.xaxis.get_inverted() and not one.xaxis.get_inverted()
            assert two.xaxis.get_major_formatter()(0.2, 0) == "0.8"
            lines = [[line.get_xydata() for line in ax.get_lines()] for ax in (one, two)]
            assert all(np.array_equal(a, b, equal_nan=True) for a, b in zip(*lines, strict=True))
    assert {"accuracy", "sharpness", "heatmap"} <= checked
    written = {t.get_text() for t in theirs["wiseft_curve"].axes[0].texts}
    assert written == {mirrored(f"α = {t.get_text()}")[5:] for t in ours["wiseft_curve"].axes[0].texts}
