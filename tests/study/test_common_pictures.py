"""A set and its corruptions show the same pictures: what a run knows of it, and what follows for its intervals."""

from __future__ import annotations

import numpy as np
import pytest

from sharpscope.clip.datasets.common import common_pictures
from sharpscope.clip.datasets.spec import load_dataset
from sharpscope.config.study import PairConfig, StudyConfig
from sharpscope.scores import independent_mean
from sharpscope.study.compute import compute_each
from sharpscope.study.context import Context
from sharpscope.study.repaired import Repaired
from sharpscope.study.results import Results
from sharpscope.study.tasks import Task
from sharpscope.study.tasks import Variant as RepairOf
from sharpscope.study.unitfile import Unit

FOG, COARSE, NEON, PHOTO = "mini:sketch+fog@3", "mini:sketch@test+pixelate@2", "mini:neon", "mini:photo"


@pytest.fixture(scope="module")
def done() -> tuple[Context, dict[str, Unit], Results]:
    config = StudyConfig(
        pairs=(PairConfig("p", "mini:zeroshot", "mini:success"),), model="mini", probe="mini:photo", id=(PHOTO,),
        ood=(FOG, COARSE, NEON), alphas=(0.0, 1.0), granularity="block", probe_size=8, limit=60, repair_limit=24,
        bootstrap=60, threads=1,
    )  # fmt: skip
    context = Context.load(config, config.pairs[0])
    units = {}
    for alpha in config.alphas:
        (units[key],) = compute_each(context, [Task(key := f"path/p/{alpha!r}")])
    layers = (context.layers[2].name,)
    variant = RepairOf("straggler", layers, "delta", "magnitude", 0.5, 0.5, 0.5, None)
    (units[key],) = compute_each(context, [Task(key := f"repair/p/{variant.name}/1.0", variant)])
    results = Results(config, {"p": context.layers}, {"p": context.pair.facts})
    results.take(units, {})
    return context, units, results


def test_images_of_one_row_are_one_picture_and_no_others() -> None:
    load = {s: load_dataset(s, limit=40) for s in (FOG, COARSE, PHOTO)} | {NEON: load_dataset(NEON)}
    load["mini:sketch@train+fog@3"] = load_dataset("mini:sketch@train+fog@3", limit=40)
    load["mini:neon#base"] = load_dataset("mini:neon#base", limit=40)
    pictures = common_pictures(load)
    assert set(pictures) == {FOG, COARSE, NEON, "mini:neon#base"}
    clean = load_dataset("mini:sketch")
    for spec in (FOG, COARSE):
        rows = np.array(load[spec].rows)
        np.testing.assert_array_equal(pictures[spec] - pictures[spec].min(), rows - rows.min())
        np.testing.assert_array_equal(load[spec].labels, clean.labels[load[spec].rows])
    shared = np.intersect1d(pictures[FOG], pictures[COARSE])
    assert 0 < len(shared) < 40  # each spec's limit chooses its own images
    assert not np.isin(pictures[FOG], pictures[NEON]).any()


def test_a_run_notes_the_pictures_of_sets_that_share_some(done: tuple) -> None:
    context, units, results = done
    first = units["path/p/0.0"].arrays
    assert {k for k in first if k.startswith("pictures:")} == {f"pictures:{FOG}", f"pictures:{COARSE}"}
    for spec in (FOG, COARSE):
        np.testing.assert_array_equal(results.pictures("p")[spec], common_pictures(context.datasets)[spec])
    variant = RepairOf("straggler", (context.layers[2].name,), "delta", "magnitude", 0.5, 0.5, 0.5, None)
    compared = Repaired("p", units, [variant], (1.0,)).pictures((FOG, NEON), units["path/p/0.0"])
    assert set(compared) == {FOG}
    np.testing.assert_array_equal(compared[FOG], results.pictures("p")[FOG][context.repair_places[FOG]])


def test_gains_and_means_of_sets_that_share_pictures_have_the_error_of_the_pictures(done: tuple) -> None:
    _, units, results = done
    spread = results.along("p").groups["ood"].replicates
    pictures = results.pictures("p")
    results.pictures = lambda name: {}
    apart = results.along("p").groups["ood"].replicates
    results.pictures = lambda name: pictures
    assert not np.array_equal(spread, apart)
    rows = units["path/p/1.0"].rows["accuracy"]
    own = [r for r in rows if r["role"] == "ood"]
    (mean,) = [r for r in rows if r["role"] == "ood_mean"]
    columns = ([r[c] for r in own] for c in ("estimate", "ci_low", "ci_high"))
    values, lows, highs = columns
    together = [r["dataset"].partition("+")[0].partition("@")[0] for r in own]
    assert together == ["mini:sketch", "mini:sketch", "mini:neon"]
    wide, narrow = independent_mean(values, lows, highs, together), independent_mean(values, lows, highs)
    assert (mean["estimate"], mean["ci_low"], mean["ci_high"]) == pytest.approx(wide)
    assert wide[1] < narrow[1] and narrow[2] < wide[2]
