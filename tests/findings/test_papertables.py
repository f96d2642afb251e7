"""Tables as papers print them: the published rows of WiSE-FT from its published paths, and hand values."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from sharpscope.errors import ConfigError
from sharpscope.findings.papertables import AVERAGE, AVERAGE_ALL, Member, PaperTable, paper_table
from sharpscope.study import papertables as sources
from sharpscope.tables.files import read_csv

PUBLISHED = Path(__file__).parents[1] / "exchange/published/wiseft_table5.csv"
"""Table 5 of WiSE-FT (Wortsman et al. 2022, arXiv 2109.01903 v3): CLIP ViT-B/16, alphas in steps of .05, typed in."""
SETS = ("imagenet", "imagenet-v2", "imagenet-r", "imagenet-sketch", "objectnet", "imagenet-a")
TABLE_3 = {
    "ViT-B/16, end-to-end": (0.9, 0.4, 1.4, 0.2, 0.4, 2.4, 0.5, 0.0),
    "ViT-B/16, linear classifier": (1.8, 0.6, 1.2, 0.1, 0.2, 0.6, 0.1, 0.2),
}
"""The rows of ViT-B/16 in Table 3 of the same paper, in the order of ``SETS`` and the two averages."""


def path(name: str, by_set: dict[str, list[float]], alphas: tuple[float, ...] = (0, 0.5, 1), variant: str = "dense"):
    rows = [
        {"pair": name, "alpha": a, "variant": variant, "dataset": d, "role": "id" if d == "photo" else "ood",
         "metric": "top1", "estimate": v, "primary": True}
        for d, values in by_set.items() for a, v in zip(alphas, values, strict=True)
    ]  # fmt: skip
    return Member(name, pd.DataFrame(rows))


def row(table: PaperTable, model: str, point: str) -> list[float]:
    at = (table.mean["model"] == model) & (table.mean["point"] == point)
    assert at.sum() == 1
    return table.mean[at].iloc[0, 2:].tolist()


@pytest.mark.parametrize("model", TABLE_3)
def test_the_published_paths_give_the_published_differences(model: str) -> None:
    table = sources.paper_table([PUBLISHED], datasets=SETS)
    assert list(table.mean.columns[2:]) == [*SETS, AVERAGE, AVERAGE_ALL]
    found = row(table, model, "WiSE-FT, optimal α minus α = 0.5")
    assert tuple(round(v, 1) + 0.0 for v in found) == TABLE_3[model]


def test_every_alpha_of_the_published_path_with_its_averages() -> None:
    """The averages of Table 5 were rounded after averaging unrounded accuracies, so they agree to .1 only."""
    table = sources.paper_table([PUBLISHED], "alphas", datasets=SETS)
    assert len(table.mean) == 2 * 22
    first = row(table, "ViT-B/16, end-to-end", "WiSE-FT, α = 0.35")
    assert first == pytest.approx([79.7, 71.5, 79.9, 53.9, 57.6, 54.3, 63.4, 71.5], abs=0.1)
    stored = read_csv(PUBLISHED, "accuracy")
    at = stored[(stored["pair"] == "ViT-B/16, end-to-end") & (stored["alpha"] == 0.35)].set_index("dataset")["estimate"]
    assert first[:6] == pytest.approx([100 * at[d] for d in SETS])


def test_by_hand() -> None:
    """ID 50, 70, 60; shifts (20, 40, 10) and (40, 20, 30): means 30, 30, 20, with ID 40, 50, 40."""
    table = paper_table([path("a", {"photo": [0.5, 0.7, 0.6], "s": [0.2, 0.4, 0.1], "t": [0.4, 0.2, 0.3]})])
    assert row(table, "a", "zero-shot") == pytest.approx([50, 20, 40, 30, 40])
    assert row(table, "a", "fine-tuned") == pytest.approx([60, 10, 30, 20, 40])
    assert row(table, "a", "WiSE-FT, α = 0.5") == pytest.approx([70, 40, 20, 30, 50])
    assert row(table, "a", "WiSE-FT, optimal α") == pytest.approx([70, 40, 40, 30, 50])
    assert row(table, "a", "WiSE-FT, optimal α minus α = 0.5") == pytest.approx([0, 0, 20, 0, 0], abs=1e-12)
    assert table.sd.iloc[:, 2:].isna().all(axis=None)


def test_averages_are_over_the_printed_sets_only() -> None:
    member = path("a", {"photo": [0.5, 0.7, 0.6], "s": [0.2, 0.4, 0.1], "t": [0.4, 0.2, 0.3]})
    table = paper_table([member], datasets=("t", "photo"))
    assert list(table.mean.columns[2:]) == ["photo", "t", AVERAGE, AVERAGE_ALL]
    assert row(table, "a", "zero-shot") == pytest.approx([50, 40, 40, 45])


def test_seeds_give_mean_and_standard_deviation_and_each_has_its_own_optimum() -> None:
    """Two seeds with optima 40 at alpha .5 and 50 at alpha 1: the mean optimum is 45, more than any mean point."""
    seeds = [path("a", {"photo": [0.2, 0.4, 0.3]}), path("a", {"photo": [0.2, 0.3, 0.5]})]
    table = paper_table(seeds)
    assert row(table, "a", "WiSE-FT, optimal α") == pytest.approx([45])
    assert row(table, "a", "WiSE-FT, optimal α minus α = 0.5") == pytest.approx([10])
    spread = [np.std(values, ddof=1) for values in ((20, 20), (30, 50), (40, 30), (40, 50), (0, 20))]
    assert table.sd["photo"].to_numpy() == pytest.approx(spread)
    assert "45.0 ± 7.1" in table.text() and "over 2 seeds" in table.text()
    assert table.text("csv").splitlines()[0] == "model,point,photo,photo sd"


def test_the_other_side_is_the_same_table_under_other_names() -> None:
    """alpha' = 1 - alpha: the values of the two tables are equal point by point."""
    member = path("a", {"photo": [0.2, 0.4, 0.3]}, alphas=(0, 0.3, 1))
    ours, theirs = (paper_table([member], "alphas", alpha_on=side) for side in ("finetuned", "zeroshot"))
    for alpha, other in ((0, 1), (0.3, 0.7), (1, 0)):
        assert row(ours, "a", f"WiSE-FT, α = {alpha}") == row(theirs, "a", f"WiSE-FT, α′ = {other}")
    assert list(theirs.mean["point"]) == [f"WiSE-FT, α′ = {a}" for a in (0, 0.7, 1)] + ["WiSE-FT, optimal α′"]
    assert "weight of the zero-shot model" in theirs.text() and "weight of the fine-tuned" in ours.text()


def test_a_missing_number_is_a_dash_and_its_averages_too() -> None:
    members = [path("a", {"photo": [0.2, 0.4, 0.3], "s": [0.1, 0.2, 0.3]}), path("b", {"photo": [0.2, 0.4, 0.3]})]
    table = paper_table(members)
    assert np.isnan(row(table, "b", "zero-shot")[1:]).all()
    assert table.text("markdown").splitlines()[7].endswith("| 20.0 | — | — | — |")
    without = paper_table([path("a", {"photo": [0.2, 0.3]}, alphas=(0, 1))])
    assert np.isnan(row(without, "a", "WiSE-FT, α = 0.5")).all()


def test_a_variant_that_is_no_path_has_one_row() -> None:
    rows = [path("a", {"photo": [0.2, 0.4, 0.3]}).rows, path("a", {"photo": [0.6]}, (np.nan,), "ose").rows]
    table = paper_table([Member("a", pd.concat(rows))], variants=("dense", "ose"))
    assert row(table, "a", "ose") == pytest.approx([60])
    assert len(table.mean) == 6
    with pytest.raises(ConfigError, match="variants: the accuracies have no variant 'os'. Did you mean 'ose'?"):
        paper_table([Member("a", pd.concat(rows))], variants=("os",))


def test_latex_and_markdown_hold_the_same_cells() -> None:
    table = paper_table([path("a_b", {"photo": [0.2, 0.4, 0.3]})])
    tex, md = table.text("latex"), table.text("markdown")
    assert r"a\_b & WiSE-FT, $\alpha$ = 0.5 & 40.0 \\" in tex and r"\begin{tabular}{llr}" in tex
    assert "| a_b | WiSE-FT, α = 0.5 | 40.0 |" in md and "| --- | --- | ---: |" in md
    assert "\n\nα is the weight" in md  # a blank line ends the table
