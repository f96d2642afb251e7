"""A study on an emulated accelerator: no tensor is on the wrong device, and the numbers are those of the CPU."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

import sharpscope
from sharpscope.errors import RunDirectoryError
from sharpscope.study.demo import demo_config


def config(device: str) -> sharpscope.StudyConfig:
    """Curvature at two alphas, every block, one repair with its controls, and every further kind of evaluation."""
    demo = demo_config()
    return dataclasses.replace(
        demo, device=device, pairs=demo.pairs[:1], ood=demo.ood[:1], alphas=(0.0, 0.5, 1.0), repair_alphas=(0.5,),
        curvature_alphas=(0.0, 0.5),
        limit=16, probe_size=6, batch_size=4, bootstrap=20, jobs=1, threads=1, measures=("hessian_trace", "lambda_max"),
        shipped_pairs=False, layer_alphas=(0.0, 1.0), criticality_noise=(0.5,), granularity="block", max_matvecs=2,
        densities=(0.5,), targets=("delta",), masks=1, agreement=True, output_baselines=("ose",),
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.usefixtures("undrawn")
def test_a_study_places_every_tensor_and_gives_the_bits_of_the_cpu(emulated: Any, tmp_path: Path) -> None:
    here = sharpscope.run(config("auto"), tmp_path / "cpu")
    device = emulated.Emulated(strict=False)
    with device:
        there = sharpscope.run(config("cuda"), tmp_path / "cuda")
        # bits differ between real devices, so that a run is not taken up on another one
        with pytest.raises(RunDirectoryError, match="device is not set there, .* here"):
            sharpscope.run(config("auto"), tmp_path / "cpu")
    assert not device.errors, device.report()
    assert not there.failed_units and not here.failed_units
    for table in ("path", "sharpness", "accuracy", "stragglers", "repair", "agreement"):
        pd.testing.assert_frame_equal(there.tables[table], here.tables[table], check_exact=True)
    assert len(there.tables["repair"]) and torch.get_default_device().type == "cpu"
