"""One look a pair: its colour and mark follow from the run's order, in every figure and in every part of the tables."""

from __future__ import annotations

import inspect
from types import FunctionType
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from sharpscope import plot
from sharpscope.present.canvas import figure_of
from sharpscope.present.paperplots.drawn import Drawn
from sharpscope.present.sources import Tables
from sharpscope.present.style import COLOURS, PAIR_COLOURS, look_at, pair_looks, places_of
from sharpscope.study.figures.kinds import FIGURES
from tests.present.conftest import CURVES, OOD, make_accuracy, make_agreement, make_sharpness

ORDER = ("zeta", "mid", "alpha", "nu", "beta")
COLOURED = sorted(n for n, kind in FIGURES.items() if "pair_order" in inspect.signature(kind.plot).parameters)


def five(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of one pair for five pairs; every estimate of a pair is a little larger than that of the one before."""
    one = table[table["pair"] == next(iter(CURVES))]
    columns = [c for c in ("estimate", "ci_low", "ci_high") if c in one]
    return pd.concat([one.assign(pair=p, **{c: one[c] * (1 + 0.02 * i) for c in columns}) for i, p in enumerate(ORDER)])


@pytest.fixture(scope="module")
def tables() -> dict[str, pd.DataFrame]:
    accuracy, left_out = five(make_accuracy()), ["mini:" + name for name in OOD[1:]]
    points = pd.DataFrame({"pair": ORDER, "sharpness": np.arange(1.0, 6.0), "ood_gain": np.arange(1.0, 6.0) / 100})
    return {
        "accuracy": accuracy[accuracy["alpha"].isin((0.0, 1.0)) & ~accuracy["dataset"].isin(left_out)],
        "sharpness": five(make_sharpness(("head",), ("hessian_trace",)).query("alpha in (0, 1)")),
        "agreement": five(make_agreement().assign(dataset=lambda t: "mini:" + t["dataset"]).query("alpha != 0.5")),
        "points": points.assign(measure="hessian_trace", alpha=0.5),
    }


def looks_in(drawn: Any) -> dict[str, tuple[str, str]]:
    """Pair -> (colour, mark) by the keys of a figure."""
    figure: Figure = drawn.figure if isinstance(drawn, Drawn) else figure_of(drawn)
    legends = [*figure.legends, *(ax.get_legend() for ax in figure.axes if ax.get_legend() is not None)]
    found: dict[str, tuple[str, str]] = {}
    for legend in legends:
        for line, text in zip(legend.get_lines(), legend.get_texts(), strict=True):
            if text.get_text() in ORDER:
                found[text.get_text()] = (to_hex(line.get_color()), str(line.get_marker()))
    return found


@pytest.mark.parametrize("name", COLOURED)
def test_a_pair_has_one_look_whichever_rows_are_drawn(name: str, tables: dict[str, pd.DataFrame]) -> None:
    part = {n: t[t["pair"].isin(ORDER[1:])].sample(frac=1.0, random_state=3) for n, t in tables.items()}
    drawn = looks_in(FIGURES[name].draw(Tables.given(tables, pairs=ORDER)))
    again = looks_in(FIGURES[name].draw(Tables.given(part, pairs=ORDER)))
    assert list(drawn) == list(ORDER) and set(again) == set(ORDER[1:])
    assert again == {pair: drawn[pair] for pair in again}
    if name != "paper_lipsum_energy":  # there colours are data sets, and marks pairs
        assert [ink for ink, _ in drawn.values()] == [c.lower() for c in COLOURS[:5]]
    by_name = looks_in(FIGURES[name].draw(Tables.given({n: t.iloc[::-1] for n, t in tables.items()})))
    assert [by_name[p] for p in sorted(ORDER)] == list(drawn.values())


def test_the_figures_that_colour_pairs_are_these() -> None:
    assert COLOURED == [
        "correlation_scatter", "paper_lipsum_energy", "paper_sharpness_correlation", "paper_wiseft_alpha",
        "paper_wiseft_diversity", "paper_wiseft_hyper", "paper_wiseft_scatter", "robustness", "sharpness_along_alpha",
        "wiseft_curve",
    ]  # fmt: skip
    every = [f for n in plot.__all__ if isinstance(f := getattr(plot, n), FunctionType)]
    takes = {f.__name__ for f in every if "pair_order" in inspect.signature(f).parameters}
    assert takes == {FIGURES[n].plot.__name__ for n in COLOURED} | {"wiseft_curve"}
    assert not any("pair_order" in kind.options() for kind in FIGURES.values()), "no script asks for it"


def test_places_are_those_of_the_order_and_then_by_name() -> None:
    assert places_of(["b", "c", "x", "a"], ["c", "gone", "b"]) == {"c": 0, "b": 2, "a": 3, "x": 4}
    assert list(places_of(["b", "c", "x", "a"], ["c", "gone", "b"])) == ["c", "b", "a", "x"]
    assert places_of(["b", "a", "b"]) == {"a": 0, "b": 1}


def test_as_many_pairs_as_colours_are_told_apart_and_no_mark_is_that_of_an_end() -> None:
    names = [f"p{i:02d}" for i in range(len(PAIR_COLOURS) + 1)]
    looks, entries = pair_looks(names[:-1])
    assert len({look.colour for look in looks.values()}) == len(looks) == len(entries)
    assert not {x.marker for x in looks.values()} & {"s", "*"}
    crowd, (entry,) = pair_looks(names)
    assert len(set(crowd.values())) == 1 and entry.get_label() == f"each of {len(names)} pairs"
    assert {x.colour for x in pair_looks(names[:3], names)[0].values()} == {x.colour for x in crowd.values()}
    own = names[:-3]
    for beside, last in ((names[-3:-1], "p15"), (names[-3:], "each of 2 other pairs")):
        *told, other = pair_looks([*own, "zz", *beside], [*own, "zz"])[1]
        assert [x.get_label() for x in told][: len(own) + 1] == [*own, "zz"] and other.get_label() == last


def test_pairs_of_elsewhere_take_no_colour_of_the_run() -> None:
    own = pair_looks(ORDER, ORDER)[0]
    beside = pair_looks([*ORDER, *(f"shipped{i:02d}" for i in range(15))], ORDER)[0]
    assert all(beside[p].colour == own[p].colour for p in ORDER)
    others = {look.colour for p, look in beside.items() if p not in ORDER}
    assert not others & {look.colour for look in own.values()}
    assert look_at(0).line == {"color": COLOURS[0], "marker": "o"}
