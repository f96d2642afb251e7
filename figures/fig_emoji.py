"""The emoji study, one figure per claim, from the tables that analyses/emoji/verdicts.py writes: about ten seconds.

python figures/fig_emoji.py analyses/emoji/results --out analyses/emoji/results/figures
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from sharpscope.errors import NoData, shown
from sharpscope.present import claimplots, populationplots
from sharpscope.present.canvas import save
from sharpscope.present.residualplots import sharpness_and_gain
from sharpscope.study.figures.script import drawing
from sharpscope.tables.files import read_csv
from sharpscope.vocabulary import ALL, PRIMARY

TABLES = ("pairs", "residuals", "layers", "repairs", "ways", "predictors", "advice", "verdicts")


def read(folder: Path) -> dict[str, pd.DataFrame]:
    lacking = [name for name in TABLES if not (folder / f"{name}.csv").is_file()]
    if lacking:
        raise NoData(f"{shown(str(folder / lacking[0]))}.csv: no such file; 'make verdicts' writes it.")
    found = {name: pd.read_csv(folder / f"{name}.csv") for name in TABLES}
    return {**found, "residuals": read_csv(folder / "residuals.csv", "residuals")}


def drawings(t: Mapping[str, pd.DataFrame]) -> dict[str, Callable[[], Figure]]:
    """Name of a figure -> what draws it."""
    verdicts = t["verdicts"]
    whole = verdicts[verdicts["claim"].str.startswith("whole-model")]
    training = t["pairs"][t["pairs"]["bases"] == "training"]
    return {
        "emoji_paths": lambda: populationplots.gain_paths(training),
        "emoji_sharpness": lambda: _sharpness(t["residuals"], whole),
        "emoji_layers": lambda: claimplots.layer_sizes(t["layers"], verdicts),
        "emoji_repair": lambda: claimplots.repairs(t["repairs"], t["ways"], verdicts),
        "emoji_predictors": lambda: claimplots.predictors(t["predictors"]),
        "emoji_advice": lambda: claimplots.advice(t["advice"], verdicts),
    }


def _sharpness(residuals: pd.DataFrame, verdicts: pd.DataFrame) -> Figure:
    """The figure that every run has, its sources being the kinds of bases; told are the training bases' verdicts."""
    told = verdicts.rename(columns={"effect": "estimate"}).assign(
        layer=ALL, family=PRIMARY, source="training", status="ok", given="all covariates"
    )
    return sharpness_and_gain(residuals.assign(source=residuals["bases"]), told).figure


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "tables", type=Path, metavar="FOLDER", help="folder of the tables that analyses/emoji/verdicts.py writes"
    )
    parser.add_argument("--out", type=Path, default=Path("figures"), help="folder for the PDFs and the PNGs")
    args = parser.parse_args(argv)
    with drawing():
        for name, draw in drawings(read(args.tables)).items():
            try:
                figure = draw()
            except NoData as why:
                print(f"{name} is not drawn: {why}")
            else:
                save(figure, args.out, name)


if __name__ == "__main__":
    main()
