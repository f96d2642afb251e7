"""The agreement of several checkpoints with one another: symmetry, the same numbers as two at a time, refusals."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from sharpscope.clip.agreement import Seen, compare
from sharpscope.clip.answering import answers
from sharpscope.clip.datasets.spec import load_dataset
from sharpscope.clip.evaluate import evaluate
from sharpscope.clip.head import Classifier
from sharpscope.clip.model import ClipModel
from sharpscope.errors import ConfigError, PairMismatch
from sharpscope.tables.files import read_csv
from sharpscope.vocabulary import AGREEMENT
from sharpscope.weights import write_checkpoint

NAMES = ("cup", "key", "fish")
SYMMETRIC = (
    "disagreement", "prediction_diversity", "kappa_complement", "cka_complement", "feature_distortion",
    "feature_distance", "energy_gap", "logit_gap",
)  # fmt: skip
Theta = dict[str, torch.Tensor]


@pytest.fixture
def three(tmp_path: Path, tiny_theta: Theta) -> tuple[list[Path], str]:
    """Three models whose image towers differ, and eighteen images of three classes."""
    rng, pixels = torch.Generator().manual_seed(0), np.random.default_rng(0)
    files = [tmp_path / f"{name}.safetensors" for name in "abc"]
    for i, file in enumerate(files):
        moved = {
            n: t + 0.15 * i * torch.randn(t.shape, generator=rng) if n.startswith("visual.") and t.ndim > 1 else t
            for n, t in tiny_theta.items()
        }
        write_checkpoint(file, moved, {})
    for name in NAMES:
        (tmp_path / "set" / name).mkdir(parents=True)
        for i in range(6):
            image = Image.fromarray(pixels.integers(0, 256, (16, 16, 3), dtype=np.uint8))
            image.save(tmp_path / "set" / name / f"{i}.png")
    return files, f"folder:{tmp_path / 'set'}"


def test_every_pair_and_its_symmetry(
    three: tuple[list[Path], str], tmp_path: Path, tiny_paths: dict[str, Path], tiny_model: ClipModel
) -> None:
    (files, spec), out = three, tmp_path / "agreement.csv"
    told = evaluate(files, str(tiny_paths["vit"]), [spec], bootstrap=50, agreement_out=out)
    assert told.equals(evaluate(files, str(tiny_paths["vit"]), [spec], bootstrap=50))
    table = read_csv(out, "agreement")
    assert set(table["pair"]) == {"a|b", "a|c", "b|a", "b|c", "c|a", "c|b"}
    assert (table["pair"].str.partition("|")[0] == table["against"]).all() and table["alpha"].isna().all()
    wide = table.pivot_table(index="pair", columns="measure", values="estimate")
    assert set(wide) == {name for name, measure in AGREEMENT.items() if measure.of == "end"}
    assert wide["disagreement"].max() > 0 and wide["kl_divergence"].nunique() == 6
    for one, other in (("a|b", "b|a"), ("a|c", "c|a"), ("b|c", "c|b")):
        assert wide.loc[one, list(SYMMETRIC)].to_numpy() == pytest.approx(
            wide.loc[other, list(SYMMETRIC)].to_numpy(), nan_ok=True
        )
        assert wide.loc[one, "only_end_right"] == wide.loc[other, "only_point_right"]
        assert wide.loc[one, "margin_difference"] == pytest.approx(-wide.loc[other, "margin_difference"])
    # b with c again, by the function that a run uses
    dataset = load_dataset(spec, model=tiny_model)
    classifier, outputs = Classifier(tiny_model, "zeroshot", dataset.classnames), []
    for file in files[1:]:
        seen, theta = Seen(), classifier.attach(_theta(file))
        labels = answers(classifier, theta, dataset, seen=seen).labels
        outputs.append(seen.outputs())
    again = {name: one.estimate for name, one in compare(*outputs, labels).items() if name != "energy_gap"}
    assert wide.loc["b|c", list(again)].to_dict() == pytest.approx(again)


def test_what_cannot_be_compared_is_refused(
    three: tuple[list[Path], str], tmp_path: Path, tiny_paths: dict[str, Path], tiny_theta: Theta
) -> None:
    (files, spec), model, out = three, str(tiny_paths["vit"]), tmp_path / "x.csv"
    with pytest.raises(ConfigError, match="compares models with one another and needs at least two, got 1"):
        evaluate(files[0], model, [spec], agreement_out=out)
    with pytest.raises(ConfigError, match="agreement_out: compares files, not the points of paths"):
        evaluate(files[1:], model, [spec], base=files[0], paths=("linear",), classnames=NAMES, agreement_out=out)
    facts = {
        "sharpscope.head.scale_baked": "true", "sharpscope.head.normalize": "true",
        "sharpscope.classnames": '["fish", "key", "cup"]',
    }  # fmt: skip
    write_checkpoint(tmp_path / "d.safetensors", {**tiny_theta, "head.weight": torch.eye(3, 12)}, facts)
    with pytest.raises(PairMismatch, match="the heads of a and d have other classes or another order"):
        evaluate([files[0], tmp_path / "d.safetensors"], model, [spec], agreement_out=out)
    assert not out.exists()


def test_one_model_twice_agrees_with_itself(
    three: tuple[list[Path], str], tmp_path: Path, tiny_paths: dict[str, Path]
) -> None:
    (files, spec), out = three, tmp_path / "x.csv"
    twin = tmp_path / "twin.safetensors"
    twin.write_bytes(files[1].read_bytes())
    evaluate([files[1], twin], str(tiny_paths["vit"]), [spec], bootstrap=50, agreement_out=out)
    table: pd.DataFrame = read_csv(out, "agreement")
    assert (table["estimate"] == 0).all() and len(table) == 2 * 12


def _theta(file: Path) -> Theta:
    from safetensors.torch import load_file

    return load_file(file)
