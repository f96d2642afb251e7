"""How far the layers of two checkpoints are from each other: the table ``changes`` of ``inspect --out``."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path

import numpy as np
import pytest

from sharpscope.cli import main as cli
from sharpscope.clip.changes import layer_changes
from sharpscope.clip.pair import resolve_checkpoint
from sharpscope.tables.files import read_csv
from sharpscope.vocabulary import Granularity
from sharpscope.weights import Pair, check_pair, read_checkpoint


@pytest.fixture(scope="module")
def pair() -> Pair:
    return check_pair(*(read_checkpoint(resolve_checkpoint(f"mini:{end}")) for end in ("zeroshot", "success")))


def test_tensors_by_hand_and_squares_add_up_over_layers(pair: Pair) -> None:
    tensors = layer_changes(pair, "tensor").set_index("layer")
    name = "visual.transformer.resblocks.2.mlp.c_fc.bias"
    zero, one = (theta[name].double().numpy() for theta in (pair.theta_0, pair.theta_1))
    assert tensors.loc[name, "distance"] == pytest.approx(np.linalg.norm(one - zero), rel=1e-12)
    assert tensors.loc[name, "norm_0"] == pytest.approx(np.linalg.norm(zero), rel=1e-12)
    assert tensors.loc[name, "relative"] == pytest.approx(np.linalg.norm(one - zero) / np.linalg.norm(zero), rel=1e-12)
    assert tensors.loc[name, ["tower", "depth", "num_params"]].tolist() == ["image", 3, zero.size]
    for granularity in ("module", "block"):
        wider = layer_changes(pair, _known(granularity))
        for column in ("distance", "norm_0"):
            assert (wider[column] ** 2).sum() == pytest.approx((tensors[column] ** 2).sum(), rel=1e-9)
        assert wider["num_params"].sum() == tensors["num_params"].sum()


def _known(name: str) -> Granularity:
    return "module" if name == "module" else "block"


def test_the_command_writes_what_it_prints(tmp_path: Path, pair: Pair) -> None:
    file = tmp_path / "changes.csv"
    told = io.StringIO()
    with contextlib.redirect_stdout(told), contextlib.redirect_stderr(told):
        assert (
            cli.main(["inspect", "mini:zeroshot", "mini:success", "--granularity", "tensor", "--out", str(file)]) == 0
        )
    assert told.getvalue().rstrip().endswith(f"wrote {file}")
    table = read_csv(file, "changes").set_index("layer")
    assert table.loc["visual.proj", "distance"] == layer_changes(pair).set_index("layer").loc["visual.proj", "distance"]
    for argv, said in (
        (["inspect", "mini:zeroshot", "--out", str(file)], "--out: takes the comparison of two files"),
        (["inspect", str(file), "mini:success", "--out", str(file)], "--out: .* is one of the inputs"),
    ):
        told = io.StringIO()
        with contextlib.redirect_stderr(told):
            assert cli.main(argv) == 2
        assert re.search(said, told.getvalue())
