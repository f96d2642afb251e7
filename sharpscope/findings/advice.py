"""Advice on alpha by what is known of the OOD data, and the OOD accuracy that each rule loses to the best alpha."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from scipy import special

from sharpscope.findings.advising.along import AlongPath, Row, baseline_rows, best_baseline
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
    accuracy on the OTHER pairs at equal ID accuracy: at least 4 pairs, and the t interval of the mean over pairs lies
    above 0 after a Bonferroni correction over sparsities.

    Args:
        path: the pair's accuracies (``along_path``).
        known: what else is known.
        keep_id: the share of the path's best ID accuracy that the rule ``keep_id`` keeps, in (0, 1].

    Returns:
        Table ``advice``. Accuracies, gains and regrets are shares in [0, 1]. ci_low and ci_high belong to
        predicted_gain, the gain in OOD (or target) accuracy over zero-shot. ``expected_regret``: the rule's mean regret
        where it was tested (on held-out shifts, on left-out settings), beside ``baseline_regret`` of ``best_baseline``,
        the best baseline in the same test; for ``measured`` the baseline's regret on the OOD labels themselves.

    Raises:
        ConfigError: fewer than 20 labelled target images, or a path without alpha 0 with them.
    """
    known = known or Known()
    baselines = baseline_rows(path)
    rows = [row | best_baseline(baselines, row["group"]) for row in measured_rows(path, keep_id)]
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
    repairs, level = of_group(known.repairs, group), path.level
    rows = repairs[(repairs["pair"] != path.pair) & (repairs["control"] == "none") & (repairs["status"] == "ok")]
    means = rows.groupby(["target", "select", "density", "pair"], sort=True)["gain"].mean().reset_index()
    groups = [(key, g["gain"].to_numpy()) for key, g in means.groupby(["target", "select", "density"], sort=True)]
    tested = [(key, g) for key, g in groups if len(g) >= FEWEST_REFERENCES]
    best: tuple[float, Any, int] | None = None
    for key, gains in tested:
        half = float(special.stdtrit(len(gains) - 1, 1 - (1 - level) / (2 * len(tested))))
        low = float(gains.mean() - half * gains.std(ddof=1) / math.sqrt(len(gains)))
        if low > 0 and (best is None or low > best[0]):
            best = (low, key, len(gains))
    if best is None and not tested:
        return {}, NOT_FROM_ID
    if best is None:
        few = f"at least {FEWEST_REFERENCES} other pairs"
        return {}, f"{NOT_FROM_ID}, and no sparsity has a mean gain over {few} whose interval lies above 0"
    target, select, density = best[1]
    what = f"{target}:{select} sparsity of the stragglers"
    why = f"{what} raised OOD accuracy by at least {100 * best[0]:.1f} points on average over {best[2]} other pairs"
    return {"layers": "+".join(known.stragglers), "density": float(density)}, why
