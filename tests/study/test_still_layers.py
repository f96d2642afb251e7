"""Pairs of which most does not move, through the whole study: learnt prompts (the head alone), CLIPFit (vectors)."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from sharpscope import study
from sharpscope.clip import miniworld
from sharpscope.clip.model import ClipModel
from sharpscope.config import PairConfig, StudyConfig
from sharpscope.finetune.clipfit import CLIPFit
from sharpscope.finetune.contcoop import ContCoOp
from sharpscope.finetune.data import TensorExamples
from sharpscope.finetune.fit import fit
from sharpscope.finetune.method import Task
from sharpscope.finetune.pretrain import as_tensor
from sharpscope.schema import ALL
from sharpscope.weights.checkpoint import read_checkpoint, write_checkpoint


def quick_pairs(folder: Path) -> tuple[PairConfig, ...]:
    """Both methods after four steps on 32 photos."""
    model = ClipModel.load("mini")
    theta_0 = {k: v.float() for k, v in read_checkpoint(miniworld.checkpoint_path("zeroshot")).tensors.items()}
    sample = miniworld.make("photo", 32, 5)
    examples = TensorExamples(as_tensor(sample.images, model), torch.from_numpy(sample.labels))
    task = Task(model, theta_0, miniworld.CLASSES, miniworld.TEMPLATES, 32)
    pairs = []
    for method in (CLIPFit(lr=0.3, steps=4, batch_size=16, warmup=0), ContCoOp(lr=1, steps=4, batch_size=16, warmup=0)):
        file = folder / f"{method.name}.safetensors"
        write_checkpoint(file, *fit(method, task, examples, progress=False).exported)
        pairs.append(PairConfig(method.name, "mini:zeroshot", str(file)))
    return tuple(pairs)


pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> study.Run:
    folder = tmp_path_factory.mktemp("still")
    config = StudyConfig(
        pairs=quick_pairs(folder),
        model="mini",
        probe="mini:photo",
        id=("mini:photo",),
        ood=("mini:sketch",),
        alphas=(0.0, 0.5, 1.0),
        measures=("ggn_trace",),
        probe_size=8,
        batch_size=8,
        eval_limit=64,
        rtol=0.5,
        max_matvecs=3,
        layer_alphas=(0.0, 1.0),
        criticality_noise=(1.0,),
        straggler_rule="top:1",
        straggler_criterion="rewind",
        densities=(0.5,),
        targets=("delta",),
        selects=("random",),
        repair_alphas=(0.5,),
        bootstrap=20,
        threads=1,
    )
    return study.run(config, folder / "run")


def moving(layer: str, pair: str) -> bool:
    """What CLIPFit and a prompt's head move, by name."""
    if pair == "contcoop":
        return layer == "head"
    norm = layer.startswith("visual.") and layer.rsplit(".", 1)[-1].startswith("ln_")
    return norm or (layer.endswith(".mlp") and not layer.startswith("visual."))


def test_layers_that_do_not_move_are_measured_and_said_to_stand_still(finished: study.Run) -> None:
    assert not finished.failed_units
    table = finished.sharpness[finished.sharpness["layer"] != ALL]
    assert set(table["pair"]) == {"clipfit", "contcoop"}
    for _, row in table.iterrows():
        still = "does not move" in str(row["note"])
        assert still != moving(row["layer"], row["pair"]), (row["pair"], row["layer"])
        assert np.isfinite(row["estimate"])
    scores = finished.stragglers
    for _, row in scores.iterrows():
        assert (row["status"] == "frozen") != moving(row["layer"], row["pair"])
    assert set(scores.loc[scores["chosen"] == True, "layer"]) <= {  # noqa: E712
        x for x, p in zip(scores["layer"], scores["pair"], strict=True) if moving(x, p)
    }


def test_controls_are_drawn_from_what_moves(finished: study.Run) -> None:
    repair = finished.repair
    for _, row in repair.iterrows():
        assert all(moving(layer, row["pair"]) for layer in row["layers"].split("+"))
    fits = repair[repair["pair"] == "clipfit"].set_index("control")
    assert set(fits.index) == {"none", "random_layers", "all_layers", "everything"}
    dropped = 1 - fits["kept_fraction"]
    assert dropped["all_layers"] == pytest.approx(dropped["none"])  # as many entries, spread over all that moves
    # where the head alone moves nothing else can be a control
    assert set(repair.loc[repair["pair"] == "contcoop", "control"]) == {"none"}


def test_the_path_of_a_prompt_mixes_the_logits_of_two_heads(finished: study.Run) -> None:
    """theta(1/2) has the mean of the two classifiers' logits: its losses by hand from the ends."""
    config = StudyConfig.from_dict(json.loads((finished.root / "manifest.json").read_text())["config"])
    context = study.Context.load(dataclasses.replace(config), config.pairs[1])
    probe, pair = context.probe, context.pair
    images, labels = probe.batches[0]
    ends = [pair.classifier.logits(theta, images) for theta in (pair.theta_0, pair.theta_1)]
    half = torch.nn.functional.cross_entropy((ends[0] + ends[1]) / 2, labels)
    path = finished.path[finished.path["pair"] == "contcoop"].set_index("alpha")
    assert path.loc[0.5, "loss"] == pytest.approx(float(half), rel=1e-5)
    assert path.loc[0.5, "num_moving"] == 16 * 64
    assert path.loc[1.0, "distance_0"] == pytest.approx(2 * path.loc[0.5, "distance_0"])


def test_the_report_says_what_moves(finished: study.Run) -> None:
    page = finished.report.read_text(encoding="utf-8")
    assert "the head alone: the towers stand still, and the path mixes the logits of the two heads" in page
    assert "image: 20 of 56 tensors (norms alone); text: 2 of 29 tensors (biases alone)" in page
    assert "▪ does not move: both ends share its weights" in page
