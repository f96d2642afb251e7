"""What experiment trackers are told: every value once, by names and places that can be found again."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from sharpscope.cli.main import main
from sharpscope.errors import ConfigError
from sharpscope.finetuning.fit import fit
from sharpscope.finetuning.methods.wise_ft import WiseFT
from sharpscope.finetuning.statefile import StateFile
from sharpscope.study.report import Run
from sharpscope.study.trackers import TrainingCurves, track_run, tracked
from sharpscope.tables.schema import COLUMNS

LOSSES = [2.0, 1.5, 1.25, 1.0]


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Name -> (step, value), as TensorBoard itself reads the event files."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder)).Reload()
    return {tag: [(e.step, e.value) for e in found.Scalars(tag)] for tag in found.Tags()["scalars"]}


def pictures(folder: Path) -> list[str]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return list(EventAccumulator(str(folder)).Reload().Tags()["images"])


def told(folder: Path, parts: Sequence[int], losses: Sequence[float] = LOSSES) -> None:
    """A training that tells its losses after so many steps, and its accuracy at the end."""
    with tracked(["tensorboard"], folder) as trackers:
        curves = TrainingCurves(trackers, {"lr": 0.1})
        for part in parts:
            curves(losses[:part], [(part, 0.5)] if part == len(losses) else [])


def test_every_step_is_told_once_however_often_the_training_reports(tmp_path: Path) -> None:
    told(tmp_path, [1, 1, 3, 4])
    assert scalars(tmp_path / "tensorboard") == {"train/loss": list(enumerate(LOSSES, 1)), "val/accuracy": [(4, 0.5)]}


def test_a_resumed_training_replaces_the_curve_and_one_that_is_done_keeps_it(tmp_path: Path) -> None:
    told(tmp_path, [2])
    told(tmp_path, [2, 4])
    whole = scalars(tmp_path / "tensorboard")
    assert whole["train/loss"] == list(enumerate(LOSSES, 1))
    told(tmp_path, [])  # the file was there already, so that nothing is trained
    assert scalars(tmp_path / "tensorboard") == whole


class _StopError(Exception):
    pass


def test_fit_tells_all_losses_and_accuracies_also_when_it_resumes(task: Any, examples: Any, tmp_path: Path) -> None:
    method, seen = WiseFT(lr=1e-3, steps=6, batch_size=6, warmup=0), list[tuple[list[float], list[Any]]]()

    def watch(losses: Sequence[float], accuracies: Sequence[tuple[int, float]]) -> None:
        seen.append((list(losses), list(accuracies)))
        if len(losses) == 4 and len(seen) == 2:
            raise _StopError

    kept = StateFile(tmp_path / "state", {})
    with pytest.raises(_StopError):
        fit(method, task, examples, validation=lambda _: 0.5, watch=watch, state_file=kept, every=2)
    fitted = fit(method, task, examples, validation=lambda _: 0.5, watch=watch, state_file=kept, every=2)
    assert [len(losses) for losses, _ in seen] == [2, 4, 4, 6]
    assert seen[-1] == (list(fitted.losses), list(fitted.accuracies))
    assert all(losses == list(fitted.losses[: len(losses)]) for losses, _ in seen)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A run of two pairs with known numbers, a repaired row and a failed measure, and one figure."""
    from PIL import Image

    tables = {name: pd.DataFrame(columns=list(columns)) for name, columns in COLUMNS.items()}
    tables["path"] = pd.DataFrame({"pair": ["a", "a", "b"], "alpha": [0.0, 0.25, 1.0], "loss": [1.0, 0.5, np.nan]})
    tables["accuracy"] = pd.DataFrame(
        [
            ("a", 0.25, "dense", "photo", "", "id", 0.75),
            ("a", 0.25, "dense", "sketch, neon", "styles", "ood_mean", 0.5),
            ("a", 0.25, "repair", "photo", "", "id", 0.1),
        ],
        columns=["pair", "alpha", "variant", "dataset", "group", "role", "estimate"],
    ).assign(metric="top1", primary=True)
    tables["sharpness"] = pd.DataFrame({
        "pair": "a", "alpha": 0.5, "layer": ["(all)", "(all)", "visual.proj"],
        "measure": ["hessian_trace", "lambda_max", "hessian_trace"], "estimate": [7.0, np.nan, 3.0],
    })  # fmt: skip
    (tmp_path / "run/figures").mkdir(parents=True)
    Image.new("P", (4, 3)).save(tmp_path / "run/figures/heatmap.png")
    return Run(tmp_path / "run", tables)


EXPECTED = {
    "a/loss": [(0.0, 1.0), (0.25, 0.5)], "a/accuracy/photo": [(0.25, 0.75)],
    "a/accuracy/mean of styles": [(0.25, 0.5)], "a/sharpness/hessian_trace": [(0.5, 7.0)],
}  # fmt: skip
"""Name -> (alpha, value): what is finite, of the plain path and of the whole model."""


def test_a_run_s_curves_lie_along_alpha(run: Run) -> None:
    with tracked(["tensorboard"], run.root) as trackers:
        track_run(trackers, run, {"seed": 0})
    percent = {name: [(round(100 * a), v) for a, v in curve] for name, curve in EXPECTED.items()}
    assert scalars(run.root / "tensorboard") == percent
    assert pictures(run.root / "tensorboard") == ["figures/heatmap"]


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """The part of wandb's interface that is used; what it was asked for is kept in ``inits`` and ``logged``."""
    seen = SimpleNamespace(inits=[], logged=[], settings={}, finished=0)

    def finish() -> None:
        seen.finished += 1

    config = SimpleNamespace(update=lambda values, **_: seen.settings.update(values))
    opened = SimpleNamespace(config=config, log=seen.logged.append, define_metric=lambda *_, **__: None, finish=finish)

    def init(**asked: Any) -> SimpleNamespace:
        seen.inits.append(asked)
        return opened

    seen.init, seen.Image = init, lambda file: Path(file).name
    monkeypatch.setitem(sys.modules, "wandb", seen)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    yield seen


def test_weights_and_biases_is_offline_unless_asked_and_one_folder_is_one_run(
    run: Run, wandb: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    for mode in ("offline", "online"):
        with tracked(["wandb"], run.root) as trackers:
            track_run(trackers, run, {"seed": 0})
        monkeypatch.setenv("WANDB_MODE", "online")
        assert wandb.inits[-1]["mode"] == mode and wandb.inits[-1]["dir"] == str(run.root)
    assert wandb.inits[0]["id"] == wandb.inits[1]["id"] and wandb.finished == 2 and wandb.settings == {"seed": 0}
    curves: dict[str, list[tuple[float, float]]] = {}
    half = wandb.logged[: len(wandb.logged) // 2]
    for row in half:
        for name in row.keys() - {"alpha", "figures/heatmap"}:
            curves.setdefault(name, []).append((row["alpha"], row[name]))
    assert curves == EXPECTED and {"figures/heatmap": "heatmap.png"} in half


def test_a_tracker_that_is_not_installed_is_told_before_the_work(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ConfigError, match=r"pip install 'sharpscope\[wandb\]'"), tracked(["wandb"], tmp_path):
        pass
    asked = ["finetune", "--zeroshot", "mini:zeroshot", "--model", "mini", "--train", "mini:photo", "--track", "wandb"]
    assert main([*asked, "--out", str(tmp_path / "out")]) == 2
    assert "wandb is not installed" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_the_flag_of_finetune_writes_the_curve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def finetune(*, watch: Any, out: str, lr: float, **_: Any) -> SimpleNamespace:
        assert (out, lr) == (str(tmp_path), 0.25)
        watch([1.0, 0.5], [])
        return SimpleNamespace(path=Path(out) / "x.safetensors", summary=lambda: "", prompted="")

    monkeypatch.setattr("sharpscope.finetuning.run.finetune", finetune)
    asked = ["finetune", "--zeroshot", "mini:zeroshot", "--model", "mini", "--train", "mini:photo", "--lr", "0.25"]
    assert main([*asked, "--out", str(tmp_path), "--track", "tensorboard"]) == 0
    assert scalars(tmp_path / "tensorboard") == {"train/loss": [(1, 1.0), (2, 0.5)]}
