"""What is gained on the failing pairs of the emoji study, at equal ID accuracy: sparse stragglers and other paths."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from population import ALPHA
from scipy import stats

from sharpscope.findings.matching import match_plain
from sharpscope.tables.files import read_csv
from sharpscope.tables.rows import primary_rows

__all__ = ["other_paths", "repairs", "t_interval", "ways"]


def repairs(folders: Sequence[Path], group: str, failing: Collection[str]) -> pd.DataFrame:
    """The gain of every repair at equal ID accuracy, by pair of ``failing``: those that fail in this group.

    ``difference`` = stragglers - random, the repair's gain minus that of as many parameters in random other layers.
    """
    rows = []
    for folder in folders:
        t = read_csv(folder / "repair.csv.gz", "repair")
        t = t[(t["group"] == group) & np.isclose(t["alpha"].astype(float), ALPHA) & t["pair"].isin(failing)]
        for (pair, target, density), own in t.groupby(["pair", "target", "density"], sort=True):
            gain = own.set_index("control")["gain"].astype(float)
            if {"none", "random_layers"} <= set(gain.index):
                rows.append({"pair": pair, "group": group, "target": target, "density": density,
                             "stragglers": gain["none"], "random": gain["random_layers"],
                             "difference": gain["none"] - gain["random_layers"]})  # fmt: skip
    columns = ["pair", "group", "target", "density", "stragglers", "random", "difference"]
    return pd.DataFrame(rows, columns=columns)


def other_paths(folders: Sequence[Path], group: str, failing: Collection[str]) -> pd.DataFrame:
    """LiNeS, MonoSoup and Fisher merging of the ``failing`` pairs at the primary alpha: gain at equal ID accuracy.

    As for repairs there is none where the plain path never has the ID accuracy.
    """
    rows = []
    for folder in folders:
        t = primary_rows(read_csv(folder / "accuracy.csv.gz", "accuracy"))
        ids = t[t["role"] == "id"].groupby(["pair", "variant", "alpha"], sort=True)["estimate"].mean()
        ood = t[(t["role"] == "ood_mean") & (t["group"] == group)].set_index(["pair", "variant", "alpha"])["estimate"]
        for pair in dict.fromkeys(t.loc[t["pair"].isin(failing), "pair"]):
            plain_id, plain_ood = ids[pair]["dense"].sort_index(), ood[pair]["dense"].sort_index()
            for variant in sorted({v for v in ids[pair].index.get_level_values(0) if v.startswith("path:")}):
                here, there = float(ids[pair, variant, ALPHA]), float(ood[pair, variant, ALPHA])
                alphas = [float(a) for a in plain_id.index]
                _, at, inside = match_plain(
                    plain_id.to_numpy(float), plain_ood.to_numpy(float), alphas, np.array([here])
                )
                gain = there - float(at[0]) if inside[0] else math.nan
                rows.append({"pair": pair, "group": group, "path": variant.removeprefix("path:"), "gain": gain})
    return pd.DataFrame(rows, columns=["pair", "group", "path", "gain"])


def ways(repaired: pd.DataFrame, paths: pd.DataFrame, group: str) -> pd.DataFrame:
    """Mean gain of every way over the plain path at equal ID accuracy, in points, t intervals over failing pairs.

    ``way``: sparse weight, sparse delta (density .5), held back (density 0 of the delta: stragglers have an alpha of
    0 of their own), or a path. ``what``: gain, and for the first three difference, the gain less that of random layers.
    """
    sparse = {"sparse weight": ("weight", 0.5), "sparse delta": ("delta", 0.5), "held back": ("delta", 0.0)}
    found: dict[tuple[str, str], np.ndarray] = {}
    for way, (target, density) in sparse.items():
        own = repaired[(repaired["group"] == group) & (repaired["target"] == target) & (repaired["density"] == density)]
        known = own.dropna(subset=["stragglers", "random"])
        found[way, "gain"], found[way, "difference"] = (known[c].to_numpy(float) for c in ("stragglers", "difference"))
    for path, own in paths[paths["group"] == group].groupby("path", sort=True):
        found[str(path), "gain"] = own["gain"].dropna().to_numpy(float)
    rows = []
    for (way, what), values in found.items():
        mean, low, high = t_interval(100 * values)
        rows.append({"group": group, "way": way, "what": what, "estimate": mean, "ci_low": low, "ci_high": high,
                     "n": len(values)})  # fmt: skip
    return pd.DataFrame(rows)


def t_interval(values: np.ndarray, level: float = 0.95) -> tuple[float, float, float]:
    """(mean, low, high) by Student's t over pairs; no bounds under two values."""
    n = len(values)
    if n < 2:
        return float(values.mean()) if n else math.nan, math.nan, math.nan
    half = stats.t.ppf((1 + level) / 2, n - 1) * values.std(ddof=1) / math.sqrt(n)
    return float(values.mean()), float(values.mean() - half), float(values.mean() + half)
