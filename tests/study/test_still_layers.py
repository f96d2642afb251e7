"""Pairs of which most does not move, through the whole study: learnt prompts (the head alone), CLIPFit (vectors)."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from sharpscope.clip.model import ClipModel
from sharpscope.config.study import PairConfig, StudyConfig
from sharpscope.finetuning.examples import TensorExamples
from sharpscope.finetuning.fit import fit
from sharpscope.finetuning.method import Task
from sharpscope.finetuning.methods.clipfit import CLIPFit
from sharpscope.finetuning.methods.contcoop import ContCoOp
from sharpscope.finetuning.pretrain import as_tensor
from sharpscope.miniworld import world as miniworld
from sharpscope.study import run as study
from sharpscope.study.context import Context
from sharpscope.study.plan import plan
from sharpscope.vocabulary import ALL
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
def finished(
    tmp_path_factory: pytest.TempPathFactory, drawing: Callable[..., AbstractContextManager[None]]
) -> study.Run:
    folder = tmp_path_factory.mktemp("still")
    config = StudyConfig(
        pairs=quick_pairs(folder),
        model="mini",
        probe="mini:photo",
        id=("mini:photo",),
        ood=("mini:sketch",),
        alphas=(0.0, 0.5, 1.0),
        curvature_alphas=(0.0, 1.0),
        measures=("ggn_trace",),
        probe_size=8,
        batch_size=8,
        limit=32,
        rtol=0.5,
        max_matvecs=3,
        layer_alphas=(0.0, 1.0),
        criticality_noise=(1.0,),
        straggler_rule="top:1",
        straggler_criterion="rewind",
        targets=("delta",),
        repair_alphas=(0.5,),
        masks=2,
        bootstrap=20,
        threads=1,
        output_baselines=("ose", "vrf"),
        vrf_images=48,
        vrf_k=2,
        ensembles=("logits", "probabilities"),
        upgraded="mini:upgraded",
    )
    with drawing("sharpness", "stragglers"):
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
        assert (row["status"] == "frozen") != moving(row["layer"], row["pair"]), (row["pair"], row["layer"])
        assert np.isfinite(row["estimate"]) and np.isfinite(row["stderr"])
        assert "move" not in str(row["note"])
    whole = finished.sharpness[finished.sharpness["layer"] == ALL]
    assert len(whole) and not (whole["status"] == "frozen").any()
    scores = finished.stragglers
    for _, row in scores.iterrows():
        assert (row["status"] == "frozen") != moving(row["layer"], row["pair"])
    assert set(scores.loc[scores["chosen"] == True, "layer"]) <= {  # noqa: E712
        x for x, p in zip(scores["layer"], scores["pair"], strict=True) if moving(x, p)
    }


def test_controls_are_drawn_from_what_moves(finished: study.Run) -> None:
    repair = finished.repair
    for _, row in repair.iterrows():
        assert all(moving(layer, row["pair"]) for some in row["layers"].split(" | ") for layer in some.split("+"))
    fits = repair[repair["pair"] == "clipfit"].set_index("control")
    assert set(fits.index) == {"none", "random_layers", "all_layers", "everything"}
    dropped = 1 - fits["kept_fraction"]
    assert dropped["all_layers"] == pytest.approx(dropped["none"])  # as many entries, spread over all that moves
    # where the head alone moves nothing else can be a control
    assert set(repair.loc[repair["pair"] == "contcoop", "control"]) == {"none"}


def test_the_path_of_a_prompt_mixes_the_logits_of_two_heads(finished: study.Run) -> None:
    """theta(1/2) has the mean of the two classifiers' logits: its losses by hand from the ends."""
    config = StudyConfig.from_dict(json.loads((finished.root / "manifest.json").read_text())["config"])
    context = Context.load(config, config.pairs[1])
    probe, pair = context.probe, context.pair
    images, labels = probe.batches[0]
    ends = [pair.classifier.logits(theta, images) for theta in (pair.theta_0, pair.theta_1)]
    half = torch.nn.functional.cross_entropy((ends[0] + ends[1]) / 2, labels)
    path = finished.path[finished.path["pair"] == "contcoop"].set_index("alpha")
    assert path.loc[0.5, "loss"] == pytest.approx(float(half), rel=1e-5)
    assert path.loc[0.5, "num_moving"] == 16 * 64
    assert path.loc[1.0, "distance_0"] == pytest.approx(2 * path.loc[0.5, "distance_0"])


# ---------------------------------------------------------------------- beside the path
def accuracy(run: study.Run, pair: str, variant: str, dataset: str) -> pd.DataFrame:
    table = run.accuracy
    wanted = (table["pair"] == pair) & (table["variant"] == variant) & (table["dataset"] == dataset)
    return table[wanted & (table["metric"] == "top1") & table["role"].isin(("id", "ood"))].set_index("alpha")[
        "estimate"
    ]


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def test_mixed_outputs_by_hand(finished: study.Run) -> None:
    """OSE and VRF of both pairs in numpy, from the images on: failures, neighbours, temperatures, weights."""
    config = StudyConfig.from_dict(json.loads((finished.root / "manifest.json").read_text())["config"])
    for which in config.pairs:
        context = Context.load(config, which)
        pair, train = context.pair, context.vrf_train
        assert len(train) == 48

        @torch.no_grad()
        def said(images: torch.Tensor, pair: Any = pair) -> tuple[list[np.ndarray], np.ndarray]:
            ends = (pair.theta_0, pair.theta_1)
            features = pair.model.encode_image(pair.theta_1, images)
            return [pair.classifier.logits(t, images).double().numpy() for t in ends], features.double().numpy()

        images, y = (torch.cat(parts) for parts in zip(*train.batches(16), strict=True))
        (train_0, train_1), known, y = *said(images), y.numpy()
        failures = known[(train_1.argmax(1) == y) & (train_0.argmax(1) != y)]
        test = {n: [torch.cat(p) for p in zip(*d.batches(16), strict=True)] for n, d in context.datasets.items()}
        scores, _ = said(test["mini:photo"][0])
        right = [(s.argmax(1) == test["mini:photo"][1].numpy()).mean() for s in scores]
        grid = np.geomspace(0.05, 20, 4001)
        temperatures = [
            grid[np.argmin([abs(softmax(s / t).max(1).mean() - r) for t in grid])]
            for s, r in zip(scores, right, strict=True)
        ]
        notes = finished.accuracy[(finished.accuracy["pair"] == which.name) & (finished.accuracy["variant"] == "vrf")]
        said_of_vrf = (
            f"{len(failures)} zero-shot failures among 48 training images, distance to nearest failure number 2; temp"
        )
        assert notes["note"].str.startswith(said_of_vrf).all()
        for name, (images, labels) in test.items():
            (zero, one), features = said(images)
            mean = (softmax(zero) + softmax(one)) / 2
            found = accuracy(finished, which.name, "ose", name)
            assert np.isnan(found.index).all()
            assert found.iloc[0] == pytest.approx((mean.argmax(1) == labels.numpy()).mean())
            for alpha in (0.0, 0.5, 1.0):
                mixes = {"logits": (1 - alpha) * zero + alpha * one}
                mixes["probabilities"] = (1 - alpha) * softmax(zero) + alpha * softmax(one)
                for kind, outputs in mixes.items():
                    along = accuracy(finished, which.name, f"ensemble:{kind}", name)
                    assert along[alpha] == pytest.approx((outputs.argmax(1) == labels.numpy()).mean())
            gaps = ((features[:, None] - failures[None]) ** 2).sum(2)
            nearest = np.sort(gaps, axis=1)[:, 1] if len(failures) > 1 else np.full(len(features), np.inf)
            weight = (1 / (1 + np.exp((nearest - 1.5) / 0.6)))[:, None]
            mixed = (1 - weight) * softmax(zero / temperatures[0]) + weight * softmax(one / temperatures[1])
            table = finished.vrf[(finished.vrf["pair"] == which.name) & (finished.vrf["dataset"] == name)]
            assert table["n"].sum() == len(labels) and (table["failures"] == len(failures)).all()
            right = [(s.argmax(1) == labels.numpy()) for s in (zero, one)]
            for column, hits in zip(("zeroshot_accuracy", "finetuned_accuracy"), right, strict=True):
                assert (table["n"] * table[column]).sum() == pytest.approx(hits.sum())
            if np.isfinite(nearest).all():
                first = table.iloc[0]
                near = nearest <= first["distance_high"] + 1e-6
                assert first["n"] == near.sum() and first["distance"] == pytest.approx(nearest[near].mean(), abs=1e-5)
                assert first["zeroshot_accuracy"] == pytest.approx(right[0][near].mean())
            else:
                assert (table["status"] == "undefined").all()
            vrf = accuracy(finished, which.name, "vrf", name).iloc[0]
            assert vrf == pytest.approx((mixed.argmax(1) == labels.numpy()).mean(), abs=1.01 / len(labels))


def test_the_change_on_an_upgraded_backbone(finished: study.Run) -> None:
    """alpha 0 is its zero-shot model, whatever the pair; alpha 1 has the pair's change in it."""
    for dataset in ("mini:photo", "mini:sketch"):
        zero = {p: accuracy(finished, p, "upgraded", dataset).loc[0.0] for p in ("clipfit", "contcoop")}
        assert zero["clipfit"] == zero["contcoop"] > accuracy(finished, "clipfit", "dense", dataset).loc[0.0]
    config = StudyConfig.from_dict(json.loads((finished.root / "manifest.json").read_text())["config"])
    context = Context.load(config, config.pairs[0])
    better = read_checkpoint(miniworld.checkpoint_path("upgraded")).tensors
    theta = {n: t.float() + context.pair.theta_1[n] - context.pair.theta_0[n] for n, t in better.items()}
    images, labels = (torch.cat(p) for p in zip(*context.datasets["mini:sketch"].batches(16), strict=True))
    right = (context.pair.classifier.logits(theta, images).argmax(1) == labels).double().mean()
    assert accuracy(finished, "clipfit", "upgraded", "mini:sketch").loc[1.0] == pytest.approx(float(right))
    manifest = json.loads((finished.root / "manifest.json").read_text())
    assert miniworld.manifest()["checkpoints"]["upgraded"]["sha256"] in manifest["identity"]["inputs"]["contcoop"]


@pytest.mark.usefixtures("untimed")
def test_the_plan_counts_what_is_beside_the_path(finished: study.Run) -> None:
    config = StudyConfig.from_dict(json.loads((finished.root / "manifest.json").read_text())["config"])
    # three alphas on the upgraded backbone, the mixed outputs at one point, and those along alpha
    assert re.search(r"other accuracy +5 units", plan(config))


def test_the_report_says_what_moves(finished: study.Run) -> None:
    told = json.loads((finished.root / "manifest.json").read_text())["pairs"]
    assert {f["head_only"]: f["what moves"][:13] for f in told.values()}.get(True) == "only the head"
    assert False in {f["head_only"] for f in told.values()}
    page = finished.report.read_text(encoding="utf-8")
    assert "only the head: the towers are the same at both ends, and the path mixes the logits of the two heads" in page
    assert "image: 20 of 56 tensors (norms only); text: 2 of 29 tensors (biases only)" in page
    beside = ("the upgraded backbone plus the pair’s change", "mean of the ends’ probabilities", "VRF")
    for said in (*beside, "ensemble of the ends’ logits: best α between the ends"):
        assert said in page or said.replace("’", "&#39;") in page
    assert "▪ marks a layer that does not move, because both ends have the same weights" in page
