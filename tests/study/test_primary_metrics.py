"""A study of sets that do not go by top-1: tables, intervals and findings follow the set's own metric."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import f1_score

from sharpscope.clip.datasets.dataset import Dataset
from sharpscope.clip.datasets.spec import load_dataset
from sharpscope.config.study import PairConfig, StudyConfig
from sharpscope.errors import RunDirectoryError
from sharpscope.study import context as contexts
from sharpscope.study.compute import compute_each
from sharpscope.study.context import Context
from sharpscope.study.repaired import Repaired
from sharpscope.study.results import Results
from sharpscope.study.tasks import Task
from sharpscope.study.tasks import Variant as RepairOf
from sharpscope.study.unitfile import Unit
from sharpscope.tables.rows import dense_rows

ALPHAS = (0.0, 0.5, 1.0)
WILD, REGIONS = "mini:sketch", "mini:neon"


class Regional(Dataset):
    places: list[int] | None = None

    @property
    def groups(self) -> torch.Tensor:
        return torch.tensor(range(len(self)) if self.places is None else self.places) % 3

    def at(self, places: Sequence[int]) -> Dataset:
        part = super().at(places)
        part.__class__, part.places = Regional, list(places)  # type: ignore[attr-defined]
        return part


def load(spec: str, **options: Any) -> Any:
    """The embedded world as if its sketches were iWildCam and its neon signs FMoW."""
    dataset = load_dataset(spec, **options)
    if spec == WILD:
        dataset.metrics = ("macro_f1", "top1")
    if spec == REGIONS:
        dataset.metrics, dataset.group_names = ("worst_group", "top1"), ("Asia", "Other", "Europe")
        dataset.__class__ = Regional
    return dataset


@pytest.fixture(scope="module")
def done() -> tuple[Context, dict[str, Unit], Results]:
    config = StudyConfig(
        pairs=(PairConfig("p", "mini:zeroshot", "mini:success"),), model="mini", probe="mini:photo", id=("mini:photo",),
        ood=(WILD, REGIONS), alphas=ALPHAS, granularity="block", probe_size=8, limit=90, bootstrap=60, threads=1,
        metrics=("ece",), straggler_criterion="rewind", layer_alphas=(0.0, 1.0), repair_alphas=(0.5,),
        targets=("delta",), masks=2, repair_limit=60,
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(contexts, "load_dataset", load)
        context = Context.load(config, config.pairs[0])
        keys = [*(f"path/p/{a!r}" for a in ALPHAS), "layers/p/finetuned"]
        found = {key: compute_each(context, [Task(key)])[0] for key in keys}
        results = Results(config, {"p": context.layers})
        results.take(found, {})
        for task in results.repair_tasks():
            found[task.key] = compute_each(context, [task])[0]
        results.take(found, {})
    return context, found, results


def test_rows_of_every_metric_and_which_is_primary(done: tuple[Any, dict[str, Unit], Results]) -> None:
    _, _, results = done
    table = results.measured("accuracy")
    dense = table[(table["variant"] == "dense") & (table["alpha"] == 0.5)]
    kinds = {(r["dataset"], r["metric"]): bool(r["primary"]) for _, r in dense[dense["role"] != "ood_mean"].iterrows()}
    assert kinds == {
        ("mini:photo", "top1"): True, ("mini:photo", "ece"): False,
        (WILD, "macro_f1"): True, (WILD, "top1"): False, (WILD, "ece"): False,
        (REGIONS, "worst_group"): True, (REGIONS, "top1"): False, (REGIONS, "ece"): False,
    }  # fmt: skip
    mean = dense[dense["role"] == "ood_mean"].set_index("metric")
    assert list(mean.index) == ["ece", "primary", "top1"]
    assert set(mean["dataset"]) == {f"{WILD}+{REGIONS}"}
    own = dense.set_index(["dataset", "metric"])["estimate"]
    assert mean.loc["primary", "estimate"] == pytest.approx(
        (own.loc[WILD, "macro_f1"] + own.loc[REGIONS, "worst_group"]) / 2
    )
    kept = dense_rows(table)
    assert set(kept[kept["dataset"] == WILD]["metric"]) == {"macro_f1"}
    assert set(kept[kept["role"] == "ood_mean"]["metric"]) == {"primary"}


def test_estimates_are_those_of_the_answers(done: tuple[Any, dict[str, Unit], Results]) -> None:
    _, found, results = done
    table = results.measured("accuracy")
    at = table[(table["variant"] == "dense") & (table["alpha"] == 1.0)].set_index(["dataset", "metric"])["estimate"]
    arrays = found["path/p/1.0"].arrays
    labels, predicted = (arrays[f"macro_f1:{x}:{WILD}"] for x in ("labels", "predicted"))
    wanted = f1_score(labels, predicted, average="macro", labels=np.unique(labels))
    assert at[WILD, "macro_f1"] == pytest.approx(wanted)
    hits, groups = arrays[f"correct:{REGIONS}"], np.arange(90) % 3
    assert at[REGIONS, "worst_group"] == pytest.approx(min(hits[groups == 0].mean(), hits[groups == 2].mean()))
    assert f"top1:predicted:{REGIONS}" not in arrays
    assert "macro_f1:predicted:mini:photo" not in arrays


def test_findings_go_by_the_primary_metric(done: tuple[Any, dict[str, Unit], Results]) -> None:
    _, _, results = done
    tables = results.tables()
    accuracy = dense_rows(tables["accuracy"]).set_index(["role", "dataset", "alpha"])["estimate"].sort_index()
    curve = accuracy["ood_mean", f"{WILD}+{REGIONS}"]
    failure = tables["failure"].set_index(["flag", "dataset"]).sort_index()
    assert failure.loc[("F1", "ood_mean"), "estimate"] == pytest.approx(curve[[0.5, 1.0]].max() - curve[0.0])
    wild = accuracy["ood", WILD]
    assert failure.loc[("F4", WILD), "estimate"] == pytest.approx((wild[0.0] + wild[1.0]) / 2 - wild[0.5])
    assert np.isfinite(failure.loc[("F1", WILD), ["ci_low", "ci_high"]].astype(float)).all()
    advice = tables["advice"].set_index("rule")
    assert advice.loc["ood_best", "ood_accuracy"] == advice.loc["oracle", "ood_accuracy"]
    assert advice.loc["oracle", "ood_accuracy"] == pytest.approx(curve.max())
    repair = tables["repair"]
    assert len(repair) == 4
    for _, row in repair.iterrows():
        own = tables["accuracy"]
        masks = [f"{row['variant']}#{i}" for i in range(1, int(row["n_masks"]) + 1)]
        own = own[own["variant"].isin(masks) & (own["role"] == "ood_mean") & own["primary"]]
        assert len(own) == row["n_masks"] == (2 if row["control"] in ("none", "random_layers") else 1)
        assert row["ood_accuracy"] == pytest.approx(float(own["estimate"].mean()))
    assert isinstance(tables["verdicts"], pd.DataFrame)


def test_repairs_are_compared_with_the_plain_path_on_the_same_images(
    done: tuple[Any, dict[str, Unit], Results],
) -> None:
    context, found, results = done
    unit = found["repair/p/straggler:delta:random:0.5#2/0.5"]
    spec = "mini:photo"
    places = unit.arrays[f"places:{spec}"]
    assert len(places) == 60 and list(places) == context.datasets[spec].choice(60, 0)
    right = Repaired("p", results.units, results.variants("p"), (0.5,))
    plain = right.compared(spec, [found["path/p/1.0"]])
    np.testing.assert_array_equal(plain[0], found["path/p/1.0"].arrays[f"correct:{spec}"][places])
    np.testing.assert_array_equal(right.compared(spec, [unit])[0], unit.arrays[f"correct:{spec}"])
    wild = right.compared(WILD, [found["path/p/1.0"]])
    kept = unit.arrays[f"places:{WILD}"]
    np.testing.assert_array_equal(wild.labels, found["path/p/1.0"].arrays[f"macro_f1:labels:{WILD}"][kept])


def test_images_that_could_not_be_read_have_no_answer_to_be_taken() -> None:
    """Of five listed images the second is lost; the repair was evaluated on places 0, 2 and 4."""
    part = Unit({}, {"correct:a": np.ones(3, bool), "places:a": np.array([0, 2, 4]), "listed:a": np.array(5)})
    layers = ("l",)
    variant = RepairOf("straggler", layers, "delta", "random", 0.5, 0.5, 0.9, 1)
    units = {"repair/p/straggler:delta:random:0.5#1/0.5": part}
    plain = {"correct:a": np.array([True, False, True, False]), "lost:a": np.array([1])}
    right = Repaired("p", units, [variant], (0.5,))
    np.testing.assert_array_equal(right.compared("a", [Unit({}, plain)]), [[True, False, False]])
    with pytest.raises(RunDirectoryError, match="could not be read"):
        right.compared("a", [Unit({}, {"correct:a": plain["correct:a"]})])
    # a run from before masks were numbered: its only mask counts as the first, its answers are to all images
    old = Repaired("p", {"repair/p/straggler:delta:random:0.5/0.5": Unit({}, plain)}, [variant], (0.5,))
    assert [run.mask for run in old.runs(["a"])] == [1]
