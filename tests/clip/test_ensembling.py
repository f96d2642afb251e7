"""Mixed outputs of two checkpoints, also of two architectures: ends, hand values, and what cannot be mixed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sharpscope.cli.main import main
from sharpscope.clip.answering import logits
from sharpscope.clip.datasets.spec import load_dataset
from sharpscope.clip.ensembling import evaluate_ensemble
from sharpscope.clip.evaluate import COLUMNS, evaluate
from sharpscope.clip.head import Classifier
from sharpscope.clip.model import ClipModel
from sharpscope.errors import ConfigError, PairMismatch
from sharpscope.weights import write_checkpoint

NAMES = ("cup", "key", "fish")
Two = tuple[tuple[Path, Path], tuple[str, str], str]


@pytest.fixture
def two(tmp_path: Path, tiny_paths: dict[str, Path], tiny_thetas: dict[str, tuple[Any, dict[str, Any]]]) -> Two:
    """(files, models, data set): a ViT for 16 pixels and a ResNet for 32, and 18 images of three classes."""
    rng = np.random.default_rng(0)
    for name in NAMES:
        (tmp_path / "set" / name).mkdir(parents=True)
        for i in range(6):
            image = Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8))
            image.save(tmp_path / "set" / name / f"{i}.png")
    for kind in ("vit", "resnet"):
        write_checkpoint(tmp_path / f"{kind}.safetensors", tiny_thetas[kind][1], {})
    files = tmp_path / "vit.safetensors", tmp_path / "resnet.safetensors"
    return files, (str(tiny_paths["vit"]), str(tiny_paths["resnet"])), f"folder:{tmp_path / 'set'}"


def test_two_architectures_by_hand(two: Two, tiny_thetas: dict[str, tuple[Any, dict[str, Any]]]) -> None:
    files, models, spec = two
    table = evaluate_ensemble(files, models, [spec], alphas=(0, 0.3, 1), metrics=["nll"], bootstrap=50)
    assert list(table.columns) == list(COLUMNS) and set(table["checkpoint"]) == {"vit+resnet"}
    outputs = []
    for kind, model in zip(("vit", "resnet"), models, strict=True):
        clip = ClipModel.load(model)
        dataset = load_dataset(spec, model=clip)
        classifier = Classifier(clip, "zeroshot", dataset.classnames, dataset.templates)
        scores, labels = logits(classifier, classifier.attach(tiny_thetas[kind][1]), dataset)
        outputs.append(scores.double())
    zero, one = outputs
    mixed = {"logits": 0.7 * zero + 0.3 * one, "probabilities": (0.7 * zero.softmax(1) + 0.3 * one.softmax(1)).log()}
    for kind, scores in mixed.items():
        at = table[(table["variant"] == f"ensemble:{kind}") & (table["alpha"] == 0.3)].set_index("metric")["estimate"]
        assert at["nll"] == pytest.approx(float(torch.nn.functional.cross_entropy(scores, labels)), rel=1e-5)
        assert at["top1"] == pytest.approx(float((scores.argmax(1) == labels).double().mean()))


def test_its_ends_are_the_two_checkpoints(two: Two) -> None:
    files, models, spec = two
    table = evaluate_ensemble(files, models, [spec], kinds=("probabilities",), alphas=(0, 1), metrics=["nll"])
    for alpha, file, model in zip((0.0, 1.0), files, models, strict=True):
        alone = evaluate(file, model, [spec], metrics=["nll"])["estimate"].to_numpy()
        assert (table[table["alpha"] == alpha]["estimate"].to_numpy() == alone).all()


def test_what_cannot_be_mixed_is_refused(two: Two, tmp_path: Path, tiny_theta: dict[str, Any]) -> None:
    files, models, spec = two
    for given, told in ((files[:1], "mixes two checkpoints, got 1"), ((*files, files[0]), "got 3")):
        with pytest.raises(ConfigError, match=told):
            evaluate_ensemble(given, models, [spec])
    with pytest.raises(ConfigError, match=r"alphas: 1.5 is outside \[0, 1\]"):
        evaluate_ensemble(files, models, [spec], alphas=(0.5, 1.5))
    facts = {"sharpscope.head.scale_baked": "true", "sharpscope.head.normalize": "true"}
    head = {"head.weight": torch.zeros(3, 12)}
    write_checkpoint(
        tmp_path / "other.safetensors", tiny_theta | head, facts | {"sharpscope.classnames": '["key", "cup", "fish"]'}
    )
    with pytest.raises(PairMismatch, match="other classes or another order"):
        evaluate_ensemble((files[1], tmp_path / "other.safetensors"), models[::-1], [spec])
    files = files[1], tmp_path / "other.safetensors"
    assert len(evaluate_ensemble(files, models[::-1], [spec], head="zeroshot", classnames=NAMES, bootstrap=2))


def test_on_the_command_line(two: Two, capsys: pytest.CaptureFixture[str]) -> None:
    files, models, spec = two
    words = ["evaluate", *map(str, files), "--model", models[0], "--second-model", models[1], "--datasets", spec]
    assert main([*words, "--ensemble", "logits", "--alphas", "0.5", "--metrics", "top1", "--csv"]) == 0
    line = capsys.readouterr().out.splitlines()[1]
    assert line.startswith("vit+resnet,folder:") and line.endswith(",ensemble:logits,0.5")
    assert main([*words, "--ensemble", "logits", "--metrics", "top1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["checkpoint", "variant", "alpha", "dataset", "n", "top1"] and len(lines) == 6
    for more, told in (
        ([], "--second-model: is a setting of --ensemble"),
        (["--ensemble", "logits", "--head-file", str(files[0])], "--head-file: belongs to one checkpoint"),
    ):
        assert main([*words, *more]) == 2
        assert told in capsys.readouterr().err
    assert main(["evaluate", str(files[0]), "--model", models[0], "--datasets", spec, "--ensemble", "logits"]) == 2
    assert "--ensemble: mixes the outputs of two checkpoints, got 1." in capsys.readouterr().err
