"""Advice on alpha by what is known of the OOD data, and the OOD accuracy that each rule loses to the best alpha."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from scipy import special

from sharpscope.findings.advising.along import AlongPath, Row, baseline_rows
from sharpscope.findings.advising.images import HeldOut, ImageCurve, image_rows
from sharpscope.findings.advising.labels import label_rows
from sharpscope.findings.advising.measured import measured_rows
from sharpscope.findings.advising.published import Tuning, published_rows
from sharpscope.findings.advising.references import Reference, reference_rows
from sharpscope.findings.prediction import FEWEST_REFERENCES
from sharpscope.tables.rows import of_group, table

__all__ = ["Known", "advice_table"]

NOT_FROM_ID = "the ID data of this pair cannot show whether sparse straggler layers would raise its OOD accuracy"


@dataclass(frozen=True)
class Known:
    """What is known of a pair beyond its ID and OOD accuracies along the path; every part may be missing.

    ``tuning``: its learning rate and what moved. ``judged``: its own features, ``references``: other pairs with OOD
    labels (both from ``reference_pairs``). ``stragglers``: its straggler layers. ``repairs``: ``repair`` tables of
    pairs with stragglers. ``labels``: bool [A, n], whether the points are right on labelled target images. ``images``:
    the estimated accuracies on target images without labels (``image_curves``). ``held_out``: how well their rules
    would have chosen on other shifts.
    """

    tuning: Tuning = field(default_factory=Tuning)
    judged: Reference | None = None
    references: Sequence[Reference] = ()
    stragglers: Sequence[str] = ()
    repairs: pd.DataFrame | None = None
    labels: np.ndarray | None = None
    images: Mapping[str, ImageCurve] | None = None
    held_out: Mapping[str, HeldOut] = field(default_factory=dict)


def advice_table(path: AlongPath, known: Known | None = None, *, keep_id: float = 0.99) -> pd.DataFrame:
    """The alphas that can be advised for one pair in every situation that is known, the strongest situation first.

    The situations and their rules are in ``vocabulary.ADVICE``; those of its situation ``baseline`` follow at the end.
    A situation of which nothing is known has no rows. Where no alpha can be advised, the situation ``none`` says what
    published paths did. Only ``measured``, ``oracle`` and the columns ``ood_accuracy`` and ``regret`` look at the
    judged pair's OOD labels.

    Sparse straggler layers are advised beside the references' alpha if some sparsity of the stragglers raised OOD
    accuracy on the OTHER pairs at equal ID accuracy, and raised it more than the same sparsity of as many random layers
    did: over at least 4 settings, whose seeds are averaged first, the t intervals of both means lie above 0 after a
    Bonferroni correction over sparsities (both at that level: an intersection-union test).

    Args:
        path: the pair's accuracies (``along_path``).
        known: what else is known.
        keep_id: the share of the path's best ID accuracy that the rule ``keep_id`` keeps, in (0, 1].

    Returns:
        Table ``advice``. Accuracies, gains and regrets are shares in [0, 1]. ci_low and ci_high belong to
        predicted_gain, the gain in OOD (or target) accuracy over zero-shot. ``regret`` is cross-fitted on the OOD
        images: what the alpha loses to the alpha that one half's labels choose, on the other half; regret_low and
        regret_high bound what it loses to the truly best one. ``expected_regret``: the rule's mean regret where it was
        tested (on held-out shifts, on left-out settings), beside ``baseline_regret`` of ``best_baseline``, the best
        baseline in the same test; for ``measured`` and ``target_labels`` a cross-fitted one on these labels.

    Raises:
        ConfigError: fewer than 20 labelled target images, or a path without alpha 0 with them.
    """
    known = known or Known()
    baselines = baseline_rows(path)
    rows = measured_rows(path, keep_id)
    if known.labels is not None:
        rows += label_rows(path, known.labels)
    if known.images is not None:
        rows += image_rows(path, known.images, known.held_out)
    if known.judged is not None and any(r.pair != path.pair for r in known.references):
        rows += reference_rows(path, known.judged, known.references, lambda group: _held_back(path, known, group))
    if not any(row["advised"] for row in rows):
        rows += published_rows(path, known.tuning)
    return table("advice", rows + baselines)


def _held_back(path: AlongPath, known: Known, group: str) -> tuple[Row, str]:
    """Advised straggler layers and density, from the gains of sparsity on OTHER pairs in ``group``; by default none."""
    if known.repairs is None or not known.stragglers:
        return {}, NOT_FROM_ID
    of_pair = {r.pair: r.setting for r in known.references}
    tested = [
        (key, by_setting)
        for key, by_setting in _gains(of_group(known.repairs, group), path.pair, of_pair)
        if len(by_setting) >= FEWEST_REFERENCES
    ]
    if not tested:
        return {}, NOT_FROM_ID
    lows = [(_lower_bounds(values, 1 - (1 - path.level) / len(tested)), key, len(values)) for key, values in tested]
    bounds, (target, select, density), count = max(lows, key=lambda found: float(found[0].min()))
    if bounds.min() <= 0:
        few = f"at least {FEWEST_REFERENCES} settings of other pairs"
        return {}, f"{NOT_FROM_ID}, and no sparsity beats both the plain path and random layers over {few}"
    plain, control = 100 * bounds
    why = (
        f"{target}:{select} sparsity of the stragglers: the lower bound of its mean OOD gain over {count} settings of "
        f"other pairs is {plain:.1f} points, and {control:.1f} over random layers made as sparse"
    )
    return {"layers": "+".join(known.stragglers), "density": float(density)}, why


def _gains(
    repairs: pd.DataFrame, pair: str, setting: Mapping[str, str]
) -> Iterator[tuple[tuple[str, str, float], np.ndarray]]:
    """(target, select, density) -> the stragglers' gain, and its difference to that of random layers, [settings, 2].

    Both are means over the alphas at which stragglers and random layers have a gain, then over a setting's pairs.
    """
    rows = repairs[(repairs["pair"] != pair) & (repairs["status"] == "ok")]
    keys = ["target", "select", "density", "pair", "alpha"]
    ours, control = (rows[rows["control"] == c].groupby(keys)["gain"].mean() for c in ("none", "random_layers"))
    both = pd.concat({"gain": ours, "control": control}, axis=1).dropna().reset_index()
    both = both.assign(
        difference=both["gain"] - both["control"], setting=[setting.get(p, p) for p in map(str, both["pair"])]
    )
    for (target, select, density), own in both.groupby(keys[:3], sort=True):
        of_pairs = own.groupby(["setting", "pair"])[["gain", "difference"]].mean()
        yield (str(target), str(select), float(str(density))), of_pairs.groupby("setting").mean().to_numpy()


def _lower_bounds(values: np.ndarray, level: float) -> np.ndarray:
    """The lower t bounds of the means of ``values`` [n, 2], each the end of an interval of coverage ``level``."""
    n = len(values)
    half = float(special.stdtrit(n - 1, (1 + level) / 2)) * values.std(axis=0, ddof=1) / math.sqrt(n)
    return np.asarray(values.mean(axis=0) - half)
